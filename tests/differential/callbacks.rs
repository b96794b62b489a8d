//! Generates callbacks: of every kind, with odd values, and mutated.

use fastrand::Rng;

pub struct Case {
    /// The query's command.
    pub command: Option<&'static str>,
    pub body: Vec<u8>,
}

const GROUP: &str = "Group.CallbackAfterRecallMsg";
const C2C: &str = "C2C.CallbackAfterMsgWithDraw";
const OFFICIAL_ACCOUNT: &str = "OfficialAccount.CallbackAfterMsgWithDraw";

/// Values that a parser may refuse, or read in another way.
#[rustfmt::skip]
const VALUES: [&str; 56] = [
    // Numbers.
    "0", "-0", "-0.0", "0e9", "1", "-1", "130", "130.0", "1.3e2", "13000E-2", "130.5", "0.1e-5", "1e19", "1e20",
    "1e400", "-1e400", "1e99999999999999999999", "0e99999999999999999999", "1E-99999999999999999999",
    "9007199254740993", "18446744073709551615", "18446744073709551615.0", "1844674407370955161.5e1",
    "18446744073709551616", "1670574414123", "1670574414123.0", "1.670574414123e12", "253402207200000",
    "253402207200001",
    // Strings.
    r#""1670574414123""#, r#""130""#, r#""0130""#, r#""+1""#, r#""1.0""#, r#"" 1""#, r#""１""#, r#""""#, r#""x""#,
    r#""a b:#@%""#, r#""é😀""#, r#""\u00e9\ud83d\ude00\/\"\\\b\f\n\r\t\u0001\u007f""#,
    r#""\ud800""#, r#""\udc00\ud800""#, r#""\ud800x""#,
    // Others.
    "null", "true", "[]", "{}", r#"[{"MsgSeq":1}]"#, r#"{"MsgSeq":1}"#,
    // Not JSON.
    "NaN", "-Infinity", "01", "1.", "'x'", "\"\u{1}\"",
];

const MUTATIONS: [&str; 22] = [
    ",", ":", "{", "}", "[", "]", "\"", "\\", "\\u", "\\ud800", "\\u0000", " ", "\t", "\n",
    "\u{b}", "\u{a0}", "\u{feff}", "0", "-", ".", "e", "//",
];

fn pick<'a>(random: &mut Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

fn one_in(random: &mut Rng, times: u32) -> bool {
    random.u32(..times) == 0
}

impl Case {
    pub fn generate(random: &mut Rng) -> Self {
        let command = pick(random, &[GROUP, C2C, OFFICIAL_ACCOUNT]);
        let in_query = match random.u32(..10) {
            0..7 => Some(command),
            7 => Some(pick(
                random,
                &[GROUP, C2C, OFFICIAL_ACCOUNT, "State.StateChange"],
            )),
            _ => None,
        };
        let mut body = match random.u32(..40) {
            0 => String::new(),
            1 => pick(
                random,
                &["{}", " \r\n\t", r#"{"hello":1}"#, r#"{"Events":[{}]}"#],
            )
            .to_owned(),
            2 | 3 => pick(random, &VALUES).to_owned(),
            _ => callback(random, command),
        }
        .into_bytes();
        if one_in(random, 4) {
            for _ in 0..=random.u32(..3) {
                mutate(random, &mut body);
            }
        }
        Self {
            command: in_query,
            body,
        }
    }
}

fn callback(random: &mut Rng, command: &str) -> String {
    let mut fields: Vec<(&str, String)> = Vec::new();
    if !one_in(random, 8) {
        fields.push(("CallbackCommand", format!("\"{command}\"")));
    }
    match command {
        GROUP => {
            fields.push(("GroupId", r#""@TGS#2J4SZEAEL""#.to_owned()));
            fields.push(("MsgSeqList", list(random, &["MsgSeq", "MsgId"])));
            fields.push(("Type", r#""Public""#.to_owned()));
            if one_in(random, 2) {
                fields.push(("TopicId", r#""@TGS#_topic""#.to_owned()));
            }
        }
        C2C => {
            fields.push(("From_Account", r#""jared""#.to_owned()));
            fields.push(("To_Account", r#""Jonh""#.to_owned()));
            fields.push(("MsgKey", r#""48374_2837546_1557481126""#.to_owned()));
        }
        _ => {
            fields.push(("Official_Account", "\"#TOA#_123\"".to_owned()));
            fields.push(("WithdrawMsgList", list(random, &["MsgKey"])));
        }
    }
    fields.push((
        "EventTime",
        pick(random, &["1670574414123", r#""1670574414123""#]).to_owned(),
    ));
    object(random, fields)
}

fn list(random: &mut Rng, names: &[&'static str]) -> String {
    let elements: Vec<String> = (0..=random.u32(..3))
        .map(|_| {
            let fields = names.iter().map(|&name| {
                let value = match name {
                    "MsgSeq" => random.u64(..).to_string(),
                    "MsgId" => r#""144115213033478435-1739361321-2512805311""#.to_owned(),
                    _ => r#""71_1_1698741698""#.to_owned(),
                };
                (name, value)
            });
            let fields = fields.collect();
            object(random, fields)
        })
        .collect();
    format!("[{}]", elements.join(&space(random, ",")))
}

/// An object with these fields, some of them changed, left out, repeated or joined by others.
fn object(random: &mut Rng, mut fields: Vec<(&str, String)>) -> String {
    if one_in(random, 6) {
        let field = random.usize(..fields.len());
        pick(random, &VALUES).clone_into(&mut fields[field].1);
    }
    if one_in(random, 12) {
        fields.swap_remove(random.usize(..fields.len()));
    }
    if one_in(random, 6) && !fields.is_empty() {
        let (name, _) = fields[random.usize(..fields.len())];
        fields.push((name, pick(random, &VALUES).to_owned()));
    }
    if one_in(random, 6) {
        let depth = random.usize(..400);
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let value = if one_in(random, 4) && depth > 0 {
            &deep
        } else {
            pick(random, &VALUES)
        };
        fields.push((
            pick(
                random,
                &["New", "", "\\ud800", "groupid", "GroupId ", "a\\tb"],
            ),
            value.to_owned(),
        ));
    }
    if one_in(random, 3) {
        random.shuffle(&mut fields);
    }
    let fields: Vec<String> = fields
        .into_iter()
        .map(|(name, value)| {
            let escaped = name
                .chars()
                .next()
                .filter(|_| one_in(random, 20))
                .map(|first| format!("\\u{:04x}{}", u32::from(first), &name[first.len_utf8()..]));
            let name = format!("\"{}\"", escaped.as_deref().unwrap_or(name));
            [space(random, &name), space(random, &value)].join(":")
        })
        .collect();
    space(random, &format!("{{{}}}", fields.join(",")))
}

/// The token, sometimes with white space around it.
fn space(random: &mut Rng, token: &str) -> String {
    if one_in(random, 8) {
        let space = pick(random, &[" ", "\n", "\r\n", "\t  "]);
        return format!("{space}{token}{space}");
    }
    token.to_owned()
}

fn mutate(random: &mut Rng, body: &mut Vec<u8>) {
    let start = random.usize(..=body.len());
    let end = body.len().min(start + random.usize(..4));
    match random.u32(..10) {
        0 => body.truncate(start),
        1 => drop(body.drain(start..end)),
        2 => body.extend(body[start..end].to_vec()),
        3 => {
            *body = String::from_utf8_lossy(body)
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
        }
        4 if start < body.len() => body[start] ^= 1 << random.u32(..8),
        5 => body.insert(start, random.u8(..)),
        6 => drop(body.splice(..0, *b"\xef\xbb\xbf")),
        _ => drop(body.splice(start..start, pick(random, &MUTATIONS).bytes())),
    }
}
