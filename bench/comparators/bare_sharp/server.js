// sharp behind node:http: resizes a file for every request, without a cache. See bench/comparators/__init__.py.
import { mkdir } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import sharp from "sharp";

const { BENCH_FILES: files } = process.env;
const port = Number(process.env.BENCH_PORT);

sharp.concurrency(1);
sharp.cache(false);
await mkdir(files, { recursive: true });

const server = createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const name = /^\/i\/(\w+)$/.exec(pathname)?.[1];
  const width = Number(searchParams.get("width"));
  try {
    const body = await sharp(join(files, `${name}.jpg`)).rotate().resize({ width }).jpeg({ quality: 80 }).toBuffer();
    response.writeHead(200, { "Content-Type": "image/jpeg", "Content-Length": body.length });
    response.end(body);
  } catch {
    response.writeHead(404).end();
  }
});

process.once("SIGTERM", () => {
  server.close();
  server.closeAllConnections();
});
server.listen(port, "127.0.0.1", () => console.log(`bare_sharp is listening on http://127.0.0.1:${port}`));
