"""Reads callbacks with Python's JSON parser, as the documents describe it, for tests/differential/main.rs.

Each line of the input is {"command": the query's command or null, "body": the body in base64}; each line of the output is
the verdict about it. Nothing here is translated from the relay's code: that would repeat its mistakes.
"""

import base64
import json
import re
import sys
import uuid
from fractions import Fraction

APP = 1400000001
NAMESPACE = uuid.UUID("afda6519-29bd-5e88-a7b3-75bca6e68e98")
GROUP = "Group.CallbackAfterRecallMsg"
C2C = "C2C.CallbackAfterMsgWithDraw"
OFFICIAL_ACCOUNT = "OfficialAccount.CallbackAfterMsgWithDraw"
RECALLS = (GROUP, C2C, OFFICIAL_ACCOUNT)
IDENTITY_FIELDS = (
    "GroupId", "TopicId", "MsgSeqList", "From_Account", "To_Account", "MsgKey", "Official_Account", "WithdrawMsgList",
)  # fmt: skip
LATEST_EVENT_TIME = 253402207200000  # ms: 9999-12-30T22:00:00Z, the last time that the relay can represent

sys.setrecursionlimit(10_000)


class Number:
    """A number as it stands in the body."""

    def __init__(self, text):
        self.text = text


class Rejected(Exception):
    """Why a recall cannot become an event."""


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def parse(body):
    # Python's parser takes more than RFC 8259: UTF-16 and UTF-32, if it is given bytes, and NaN and the infinities.
    return json.loads(body.decode("utf-8"), parse_int=Number, parse_float=Number, parse_constant=refuse)


def text(value):
    """A string that is not empty and has no lone surrogate, else None."""
    if not isinstance(value, str) or value == "":
        return None
    return None if re.search("[\ud800-\udfff]", value) else value


def unsigned(value):
    """The unsigned 64-bit integer that a value stands for, else None."""
    if isinstance(value, Number):
        mantissa, _, exponent = value.text.lower().partition("e")
        if not re.search("[1-9]", mantissa):
            return 0
        if len(exponent) > 5:
            return None
        number = Fraction(value.text)
    elif isinstance(value, str) and re.fullmatch("[0-9]{1,4000}", value):
        number = Fraction(value)
    else:
        return None
    return int(number) if number.denominator == 1 and 0 <= number < 2**64 else None


def conversation_id(callback, name):
    value = text(callback.get(name))
    if value is None:
        raise Rejected("conversation")
    return value


def entries(callback, name):
    value = callback.get(name)
    if not isinstance(value, list) or not value:
        raise Rejected("messages")
    return [entry if isinstance(entry, dict) else {} for entry in value]


def message_key(callback):
    key = text(callback.get("MsgKey"))
    if key is None:
        raise Rejected("messages")
    return key


def group_message(entry):
    seq = unsigned(entry.get("MsgSeq"))
    if seq is None:
        raise Rejected("messages")
    return [seq, text(entry.get("MsgId"))]


def identity(command, callback):
    time = None
    if command == GROUP:
        topic = callback.get("TopicId", "")
        conversation = [conversation_id(callback, "GroupId"), topic and text(topic)]
        if not isinstance(conversation[1], str):
            raise Rejected("conversation")
        messages = [group_message(entry) for entry in entries(callback, "MsgSeqList")]
        if any(message[1] is None for message in messages):
            time = unsigned(callback.get("EventTime"))
            time = None if time is None or time > LATEST_EVENT_TIME else time
    elif command == C2C:
        conversation = [conversation_id(callback, name) for name in ("From_Account", "To_Account")]
        messages = [message_key(callback)]
    else:
        conversation = [conversation_id(callback, "Official_Account")]
        messages = [message_key(entry) for entry in entries(callback, "WithdrawMsgList")]
    name = [APP, command, conversation, messages, time]
    return uuid.uuid5(NAMESPACE, json.dumps(name, ensure_ascii=False, separators=(",", ":")))


def verdict(in_query, body):
    if not body.strip(b" \t\r\n\f"):
        return "probe" if in_query in RECALLS else "other"
    try:
        callback = parse(body)
        reason = None if isinstance(callback, dict) else "not_an_object"
    except ValueError:
        reason = "not_json"
    if reason:
        return reason if in_query in RECALLS else "other"

    in_body = text(callback.get("CallbackCommand"))
    command = next((command for command in (in_query, in_body) if command in RECALLS), None)
    if command is None:
        return "other"
    if in_body is None and not any(field in callback for field in IDENTITY_FIELDS):
        return "probe"
    if in_query and in_body and in_query != in_body:
        return "command"
    try:
        return str(identity(command, callback))
    except Rejected as rejected:
        return str(rejected)


for line in sys.stdin:
    case = json.loads(line)
    print(verdict(case["command"], base64.b64decode(case["body"])))
