-- The requests that wrk sends: recall callbacks of groups, each with its own message.
--
--   wrk ... -s callbacks.lua URL -- REQUEST CONVERSATIONS PAUSE
--
-- REQUEST is a template from load.rs: conversation 10000000, a sender that ends in 3478430, message 1000000000. All
-- numbers have a fixed length, so that a request is a concatenation of a few strings and its length does not change.
-- PAUSE is the mean pause of a connection before each request, in milliseconds; 0: none.

local threads = 0

function setup(thread)
  thread:set("thread", threads)
  threads = threads + 1
end

local before_group, before_id, before_seq, after
local conversations
local sent = 0

function init(args)
  local before_sender, before_number
  before_group, before_sender, before_number, before_seq, after =
    args[1]:match("^(.-)10000000(.-)3478430(.-)1000000000(.-)1000000000(.*)$")
  before_id = before_sender .. 3478430 + thread .. before_number
  conversations = tonumber(args[2])
  local pause = tonumber(args[3])
  if pause > 0 then
    -- wrk calls it if it exists.
    function delay()
      return math.random(0, 2 * pause)
    end
  end
end

function request()
  sent = sent + 1
  local number = 1000000000 + sent
  return before_group .. 10000000 + sent % conversations .. before_id .. number .. before_seq .. number .. after
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"p999":%d,"max":%d,"refused":%d,"unanswered":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), latency.max, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
