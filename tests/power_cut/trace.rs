//! The operations of a relay on its folder, as recorded by `tests/faults/disk.c`.

use bytes::{Buf as _, Bytes};

#[derive(Debug, Clone)]
pub struct Record {
    /// The offset of the record in the trace. A sync covers the records before its `began`.
    pub position: u64,
    /// When the operation had completed: the monotonic clock in nanoseconds.
    pub at: u64,
    pub what: What,
}

/// Paths are relative to the folder; the folder itself is "".
#[derive(Debug, Clone)]
pub enum What {
    Write {
        path: String,
        offset: u64,
        data: Bytes,
    },
    Truncate {
        path: String,
        length: u64,
    },
    Create {
        path: String,
    },
    MakeFolder {
        path: String,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// All operations on it before `began` are durable.
    Sync {
        path: String,
        began: u64,
    },
    /// Operations on it before `began` may never become durable: the kernel reports the error only once.
    SyncFailed {
        path: String,
        began: u64,
    },
    /// A write to standard output.
    Output(Bytes),
}

const HEAD: usize = 32;

/// Parses a trace; ignores an incomplete record at its end, which a killed process may leave.
pub fn read(trace: Vec<u8>) -> Vec<Record> {
    let mut rest = Bytes::from(trace);
    let whole = rest.len();
    let mut records = Vec::new();
    while rest.len() >= HEAD {
        let position = (whole - rest.len()) as u64;
        let op = rest.get_u32_le();
        let path_length = rest.get_u32_le() as usize;
        let at = rest.get_u64_le();
        let number = rest.get_u64_le();
        let data_length = usize::try_from(rest.get_u64_le()).unwrap();
        if rest.len() < path_length + data_length {
            break;
        }
        let path = String::from_utf8(rest.split_to(path_length).to_vec()).unwrap();
        let data = rest.split_to(data_length);
        let what = match op {
            1 => What::Write {
                path,
                offset: number,
                data,
            },
            2 => What::Truncate {
                path,
                length: number,
            },
            3 => What::Create { path },
            4 => What::MakeFolder { path },
            5 => What::Remove { path },
            6 => What::Rename {
                from: path,
                to: String::from_utf8(data.to_vec()).unwrap(),
            },
            7 => What::Sync {
                path,
                began: number,
            },
            8 => What::Output(data),
            9 => What::SyncFailed {
                path,
                began: number,
            },
            _ => panic!("unknown operation {op} at {position}"),
        };
        records.push(Record { position, at, what });
    }
    records
}
