-- What wrk sends: recall callbacks of a group, each with a message of its own.
--
--   wrk ... -s callbacks.lua URL -- RUN CONVERSATIONS MESSAGES
--
-- RUN is a number of ten digits that no other load on the same spool has. All numbers have a fixed length,
-- so that a request is five pieces put together and its length is known.

local threads = 0

function setup(thread)
  thread:set("thread", threads)
  threads = threads + 1
end

local before_group, before_seq, before_id, after
local conversations
local sent = 0

function init(args)
  local run, messages = args[1], tonumber(args[3])
  conversations = tonumber(args[2])
  -- Those after the first are the same each time: they make the callback longer, the first makes it another.
  local others = {}
  for number = 2, messages do
    others[number - 1] = string.format(',{"MsgId":"144115213033478435-1739361321-%d","MsgSeq":%d}',
      1000000000 + number, 1000000 + number)
  end
  before_seq = '","MsgSeq":'
  before_id = string.format('","MsgSeqList":[{"MsgId":"14411521303347843%d-%s-', thread, run)
  after = "}" .. table.concat(others) .. '],"Operator_Account":"admin","Type":"Public"}'
  local body = '{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":"1670574414123","GroupId":"@TGS#2'
  local digits = 8 + 10 + 10
  local length = #body + #before_id + #before_seq + #after + digits
  before_group = "POST /?SdkAppid=1400000001&CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json"
    .. "&ClientIP=127.0.0.1&OptPlatform=RESTAPI HTTP/1.1\r\nHost: relay\r\nContent-Length: "
    .. length .. "\r\n\r\n" .. body
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
