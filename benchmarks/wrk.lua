-- wrk's part of bench_serving.py: users who send one picture after another, and whose answers are checked.
--
--     wrk -t 1 -c USERS -d SECONDSs -s wrk.lua URL -- PICTURE...
--
-- wrk does not say which request an answer is to. So answers are counted by their character, and those of a character are right
-- as far as it was asked for: by the pictures that were sent, named after their characters. The last line that is printed is the
-- summary, as JSON; times are in ms.

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function init(paths)
  requests, characters, at = {}, {}, 0
  asked, answered = {}, {}
  for index, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    requests[index] = wrk.format("POST", nil, { ["Content-Type"] = "application/octet-stream" }, file:read("*a"))
    characters[index] = path:match("([^/])[^/]*$")
    file:close()
  end
end

function request()
  at = at % #requests + 1
  asked[characters[at]] = (asked[characters[at]] or 0) + 1
  return requests[at]
end

function response(status, _, body)
  local character = status == 200 and body:match('"character":%s*"(.)"')
  if character then
    answered[character] = (answered[character] or 0) + 1
  end
end

function done(summary, latency)
  local right = 0
  for character, count in pairs(threads[1]:get("answered")) do
    right = right + math.min(count, threads[1]:get("asked")[character] or 0)
  end
  local errors = summary.errors
  local requests = summary.requests + errors.connect + errors.read + errors.write + errors.timeout
  print(string.format('{"requests": %d, "right": %d, "per_second": %f, "p50": %f, "p99": %f}',
    requests, right, right / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
