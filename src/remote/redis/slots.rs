//! Which of a cluster's 16,384 slots a key is in, and which nodes have them.

use redis::Value;

pub(crate) const SLOTS: u16 = 16_384;

/// The slot of a key, or of a channel.
pub(crate) fn slot(name: &str) -> u16 {
    crc16(tag(name.as_bytes())) % SLOTS
}

/// What of a name decides: what stands in its first braces, where there is something.
fn tag(name: &[u8]) -> &[u8] {
    let begin = name.iter().position(|byte| *byte == b'{').map(|at| at + 1);
    let inside = begin.and_then(|begin| name.get(begin..)).unwrap_or_default();
    match inside.iter().position(|byte| *byte == b'}') {
        Some(end) if end > 0 => &inside[..end],
        _ => name,
    }
}

/// XMODEM's.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut at: u16 = 0;
    while at < 256 {
        let (mut crc, mut bit) = (at << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[at as usize] = crc;
        at += 1;
    }
    table
};

/// Slots that lie together, and who has them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) owner: Placed,
    pub(crate) replicas: Vec<Placed>,
}

/// A node, as another one names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// None is that of who has answered.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
    /// The same whoever names it. Old ones have none.
    pub(crate) id: Option<String>,
}

/// What `CLUSTER SLOTS` answers. Ranges of nobody who is known are left out; of what makes no sense there are none.
pub(crate) fn ranges(answer: &Value) -> Vec<Range> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    ranges.iter().filter_map(range).collect()
}

/// How far a node has followed its cluster (`CLUSTER INFO`): each change of who has slots, but for moves of single ones, begins with a
/// number that is higher than all before, and nodes tell each other of it.
pub(crate) fn epoch(answer: &Value) -> Option<u64> {
    text(answer)?.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:")?.trim().parse().ok())
}

fn range(value: &Value) -> Option<Range> {
    let Value::Array(parts) = value else { return None };
    let [Value::Int(first), Value::Int(last), owner, replicas @ ..] = &parts[..] else { return None };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    let replicas = replicas.iter().filter_map(placed).collect();
    (first <= last && last < SLOTS).then_some(Range { first, last, owner: placed(owner)?, replicas })
}

fn placed(value: &Value) -> Option<Placed> {
    let Value::Array(parts) = value else { return None };
    let [host, Value::Int(port), rest @ ..] = &parts[..] else { return None };
    let host = match (host, text(host)) {
        (Value::Nil, _) | (_, Some("")) => None,
        // It is not known.
        (_, Some("?") | None) => return None,
        (_, Some(host)) => Some(host.to_owned()),
    };
    let id = rest.first().and_then(text).map(str::to_owned);
    Some(Placed { host, port: u16::try_from(*port).ok().filter(|port| *port > 0)?, id })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_slot_that_servers_say() {
        // By `CLUSTER KEYSLOT`.
        for (key, expected) in [
            ("", 0),
            ("123456789", 12_739),
            ("foo", 12_182),
            ("foo{bar}", 5_061),
            ("{bar}", 5_061),
            ("bar", 5_061),
            ("x{}bar", 4_497),
            ("{}", 15_257),
        ] {
            assert_eq!(slot(key), expected, "{key:?}");
        }
    }

    #[test]
    fn only_what_is_in_the_first_braces_counts_and_only_if_something_is() {
        assert_eq!(slot("user:{7}:name"), slot("{7}"));
        assert_eq!(slot("{a}{b}"), slot("a"));
        assert_eq!(slot("{{a}}"), slot("{a"));
        for whole in ["}a{b", "a{b", "{}a{b}"] {
            assert_eq!(slot(whole), crc16(whole.as_bytes()) % SLOTS, "{whole}");
        }
    }

    #[test]
    fn how_far_a_node_has_followed_stands_in_what_it_says_of_itself() {
        let info = |text: &str| Value::BulkString(text.into());
        assert_eq!(epoch(&info("cluster_state:ok\r\ncluster_current_epoch:17\r\n")), Some(17));
        for none in ["", "cluster_current_epoch:\r\n", "cluster_current_epoch:-1", "cluster_my_epoch:3\r\n"] {
            assert_eq!(epoch(&info(none)), None, "{none:?}");
        }
        assert_eq!(epoch(&Value::Nil), None);
    }

    fn node(host: Value, port: i64, id: &str) -> Value {
        let metadata = Value::Array(vec![Value::BulkString(b"hostname".to_vec())]);
        Value::Array(vec![host, Value::Int(port), Value::BulkString(id.into()), metadata])
    }

    #[test]
    fn an_answer_names_owners_and_replicas_and_what_makes_no_sense_is_left_out() {
        let host = |host: &str| Value::BulkString(host.into());
        let one = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let answer = Value::Array(vec![
            one(0, 5_460, vec![node(host("10.0.0.1"), 7_000, "a"), node(host("?"), 7_001, "b")]),
            one(5_461, 5_461, vec![node(Value::Nil, 7_002, "c"), node(host("::1"), 7_003, "d")]),
            one(5_462, 16_383, vec![node(host("?"), 7_004, "e")]),
            one(5, 4, vec![node(host("h"), 7_004, "e")]),
            one(5, 16_384, vec![node(host("h"), 7_004, "e")]),
            one(-1, 5, vec![node(host("h"), 7_004, "e")]),
            one(1, 5, vec![node(host("h"), 70_004, "e")]),
            one(1, 5, vec![node(host("h"), 0, "e")]),
            one(1, 5, vec![]),
            Value::Int(1),
        ]);
        let placed = |host: Option<&str>, port, id: &str| Placed {
            host: host.map(str::to_owned),
            port,
            id: Some(id.to_owned()),
        };
        assert_eq!(
            ranges(&answer),
            [
                Range {
                    first: 0,
                    last: 5_460,
                    owner: placed(Some("10.0.0.1"), 7_000, "a"),
                    replicas: vec![]
                },
                Range {
                    first: 5_461,
                    last: 5_461,
                    owner: placed(None, 7_002, "c"),
                    replicas: vec![placed(Some("::1"), 7_003, "d")],
                },
            ]
        );
        assert_eq!(ranges(&Value::Nil), []);
    }
}
