-- Repeats one request, or several round-robin, and checks every response. Configured by the environment:
--   BENCH_METHOD, BENCH_TYPE, BENCH_BODY   the method, the content type, a file with the body
--   BENCH_PATHS                            a file with one path per line, used round-robin
--   BENCH_FRESH                            the first value of {fresh} in a path, which counts up in hexadecimal digits
--   BENCH_STATUS, BENCH_EXPECT             the status of a correct response, and texts that it contains, one per line
--   BENCH_JPEG                             if not empty, a correct response is a complete JPEG
-- Prints one line of JSON.

local function read(path)
   local file = assert(io.open(path, "rb"))
   local text = file:read("*a")
   file:close()
   return text
end

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(_)
   wrong, example = 0, ""
   status, expected = tonumber(os.getenv("BENCH_STATUS")), {}
   for text in os.getenv("BENCH_EXPECT"):gmatch("[^\n]+") do
      table.insert(expected, text)
   end
   is_jpeg = os.getenv("BENCH_JPEG") ~= ""
   wrk.method = os.getenv("BENCH_METHOD")
   local body = os.getenv("BENCH_BODY")
   if body ~= "" then
      wrk.body = read(body)
      wrk.headers["Content-Type"] = os.getenv("BENCH_TYPE")
   end
   requests, index, fresh = {}, 0, tonumber(os.getenv("BENCH_FRESH"))
   for path in read(os.getenv("BENCH_PATHS")):gmatch("[^\n]+") do
      table.insert(requests, wrk.format(nil, path))
   end
   has_fresh = requests[1]:find("{fresh}", 1, true) ~= nil
end

function request()
   index = index % #requests + 1
   if not has_fresh then
      return requests[index]
   end
   fresh = fresh + 1
   return (requests[index]:gsub("{fresh}", string.format("%06x", fresh)))
end

function response(got_status, _, body)
   local is_correct = got_status == status
   for _, text in ipairs(expected) do
      is_correct = is_correct and body:find(text, 1, true) ~= nil
   end
   if is_jpeg then
      is_correct = is_correct and body:sub(1, 2) == "\255\216" and body:sub(-2) == "\255\217"
   end
   if not is_correct then
      wrong = wrong + 1
      if wrong == 1 then
         example = (got_status .. " " .. body:sub(1, 300)):gsub("[^%g ]", " "):gsub("[\"\\]", " ")
      end
   end
end

function done(summary, latency, _)
   local total_wrong, first = 0, ""
   for _, thread in ipairs(threads) do
      total_wrong = total_wrong + thread:get("wrong")
      first = first == "" and thread:get("example") or first
   end
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "wrong": %d, "broken": %d, "example": "%s"}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      total_wrong, errors.connect + errors.read + errors.write + errors.timeout, first
   ))
end
