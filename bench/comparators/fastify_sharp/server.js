// fastify + sharp + PostgreSQL: an upload with metadata, EXIF and a preview. See bench/comparators/__init__.py.
//
// Tuned on 2 cores with 16 connections, in turns with the variant named (s, m and l are the photographs of
// bench/photographs.py):
// - bodies up to 1 MB in memory, decoded there while they are written: s 1.1 to 1.2 times as fast as a stream to disk
//   that sharp then reads, m the same. Larger bodies as a stream: l up to 1.1 times as fast, and less memory
// - two libuv threads a process: l 1.1 times as fast as with Node's four; s and m the same with 2, 4 and 8
// - two processes: one with four threads s 0.95 times, m and l the same; one with two threads m 0.85 times
// - no difference beyond the noise: sharp.concurrency 1 or 2, its cache on or off, metadata() at the same time as the
//   preview or from the same instance, `sequentialRead`, another kernel, 2 or 8 connections to PostgreSQL, jemalloc or
//   fewer malloc arenas, the scheduling policy of cluster
import cluster from "node:cluster";
import { randomBytes } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import readExif from "exif-reader";
import fastify from "fastify";
import pg from "pg";
import sharp from "sharp";

const { BENCH_DSN: dsn, BENCH_FILES: files, BENCH_KEY: key } = process.env;
const port = Number(process.env.BENCH_PORT);
const processes = Number(process.env.BENCH_PROCESSES ?? 2);
const fsync = Boolean(process.env.BENCH_FSYNC);

const MAX_BODY_BYTES = 50 * 1024 * 1024;
const MAX_IN_MEMORY_BYTES = 1024 * 1024;
const MAX_PREVIEW_BYTES = 500;
const PREVIEWS = [[32, 50], [32, 40], [24, 40], [16, 30]]; // pixels and quality; four of five photographs fit with the first

const TABLE = `create table if not exists fastify_sharp (
  id text primary key, width int not null, height int not null, filesize bigint not null, format text not null,
  exif jsonb not null, preview bytea not null, created timestamptz not null default now())`;
const INSERT = `insert into fastify_sharp (id, width, height, filesize, format, exif, preview)
  values ($1, $2, $3, $4, $5, $6, $7)`;
const SELECT = "select id, width, height, filesize::int from fastify_sharp where id = $1";

await (cluster.isPrimary ? supervise() : serve());

async function supervise() {
  await mkdir(files, { recursive: true });
  const client = new pg.Client(dsn);
  await client.connect();
  await client.query(TABLE);
  await client.end();
  let listening = 0;
  let stopping = false;
  cluster.on("listening", () => {
    listening += 1;
    if (listening === processes) console.log(`fastify_sharp is listening on http://127.0.0.1:${port}`);
  });
  cluster.on("exit", (worker, code, signal) => {
    console.log(`process ${worker.process.pid} has exited: ${signal ?? code}`);
    if (!stopping) process.exit(1);
  });
  for (let i = 0; i < processes; i += 1) cluster.fork({ UV_THREADPOOL_SIZE: 2 });
  process.on("SIGTERM", () => {
    stopping = true;
    for (const worker of Object.values(cluster.workers)) worker.process.kill();
  });
}

async function serve() {
  sharp.concurrency(1);
  sharp.cache(false);
  const pool = new pg.Pool({ connectionString: dsn, max: 8 });
  const folder = await open(files);
  const app = fastify();
  app.addContentTypeParser("image/jpeg", (request, body, done) => done(null, body));

  app.addHook("onRequest", async (request, reply) => {
    if (request.query.key !== key) return sendError(reply, 401, "unauthorized");
  });

  app.post("/v1/images", async (request, reply) => {
    const filesize = Number(request.headers["content-length"]);
    if (!filesize) return sendError(reply, 411, "length-required");
    if (filesize > MAX_BODY_BYTES) return sendError(reply, 413, "too-large");
    const id = randomBytes(9).toString("base64url");
    const part = join(files, `${id}.part`);
    let source = part;
    let written;
    try {
      if (filesize <= MAX_IN_MEMORY_BYTES) {
        source = await readAll(request.body);
        written = writeFile(part, source, { flush: fsync });
        written.catch(() => {}); // awaited below; prevents an unhandled rejection until then
      } else {
        await pipeline(request.body, createWriteStream(part, { highWaterMark: 1024 * 1024, flush: fsync }));
      }
      const { format, width, height, exif, preview } = await readMetadata(source);
      await written;
      await rename(part, join(files, `${id}.jpg`));
      if (fsync) await folder.sync();
      const values = [id, width, height, filesize, format, JSON.stringify(exif), preview];
      await pool.query({ name: "insert", text: INSERT, values });
      const response = { id, width, height, filesize, tags: [] };
      if (request.query.with_exif) response.exif = exif;
      if (request.query.with_mini_preview) response.mini_preview = preview.toString("base64");
      return { success: true, response };
    } catch (error) {
      await written?.catch(() => {});
      await rm(part, { force: true });
      if (error instanceof InvalidPicture) return sendError(reply, 415, "not-an-image");
      throw error;
    }
  });

  app.get("/v1/images/:id", async (request, reply) => {
    const { rows } = await pool.query({ name: "select", text: SELECT, values: [request.params.id] });
    if (rows.length === 0) return sendError(reply, 404, "not-found");
    return { success: true, response: { ...rows[0], tags: [] } };
  });

  process.once("SIGTERM", async () => {
    await app.close();
    await pool.end();
    await folder.close();
    process.disconnect();
  });
  await app.listen({ host: "127.0.0.1", port });
}

function sendError(reply, status, code) {
  return reply.code(status).send({ success: false, error: { code } });
}

async function readAll(body) {
  const chunks = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks);
}

class InvalidPicture extends Error {}

// `source` is a path or the bytes. For resize(), sharp decodes a JPEG at an eighth. It rejects truncated files.
async function readMetadata(source) {
  try {
    const { format, autoOrient, exif } = await sharp(source).metadata();
    return { format, ...autoOrient, exif: exif ? convertExif(readExif(exif)) : {}, preview: await makePreview(source) };
  } catch (error) {
    throw new InvalidPicture(error.message);
  }
}

async function makePreview(source) {
  for (const [px, quality] of PREVIEWS) {
    const preview = await sharp(source).autoOrient().resize(px, px, { fit: "inside" }).jpeg({ quality }).toBuffer();
    if (preview.length <= MAX_PREVIEW_BYTES) return preview;
  }
  throw new Error("no preview is small enough");
}

function convertExif({ Image, Photo, GPSInfo }) {
  const converted = {};
  for (const [name, value] of Object.entries({ ...Image, ...Photo, ...GPSInfo })) {
    if (typeof value === "string") converted[name] = value.replaceAll("\0", ""); // jsonb does not accept it
    else if (!Buffer.isBuffer(value)) converted[name] = value;
  }
  for (const [name, negative] of [["GPSLatitude", "S"], ["GPSLongitude", "W"]]) {
    const [degrees, minutes, seconds] = converted[name] ?? [];
    const sign = converted[`${name}Ref`] === negative ? -1 : 1;
    if (seconds !== undefined) converted[name] = sign * (degrees + minutes / 60 + seconds / 3600);
  }
  return converted;
}
