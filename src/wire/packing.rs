//! Payloads that take less room in L2 than their bytes do.
//!
//! ```text
//! packed: 0 u32 length of the bytes, big endian  4 the bytes as one LZ4 block
//! ```

use bytes::Bytes;
#[cfg(feature = "lz4")]
use bytes::{BufMut, BytesMut};

use super::Refused;

pub(super) const NONE: u8 = 0;
#[cfg(feature = "lz4")]
const LZ4: u8 = 1;
/// Room for the length of the bytes.
#[cfg(feature = "lz4")]
const HEAD: usize = 4;
/// It must save this part of the bytes, or they stay as they are: each read would pay for nothing.
#[cfg(feature = "lz4")]
const SAVED: usize = 8;

/// The bytes to put into L2, and how they are packed: not at all up to `above` bytes, and where that saves too little.
pub(super) fn packed(bytes: Bytes, above: usize) -> (u8, Bytes) {
    #[cfg(feature = "lz4")]
    if bytes.len() > above {
        let mut out = BytesMut::zeroed(HEAD + lz4_flex::block::get_maximum_output_size(bytes.len()));
        let written = lz4_flex::block::compress_into(&bytes, &mut out[HEAD..]);
        if let (Ok(length), Ok(written)) = (u32::try_from(bytes.len()), written)
            && HEAD + written <= bytes.len() - bytes.len() / SAVED
        {
            (&mut out[..HEAD]).put_u32(length);
            // Of its own size: it waits for its turn.
            return (LZ4, Bytes::copy_from_slice(&out[..HEAD + written]));
        }
    }
    let _without_the_feature = above;
    (NONE, bytes)
}

/// The bytes as they were, of `most` at most, whatever a length says. `None` where they are not packed.
pub(super) fn unpacked(packing: u8, bytes: &[u8], most: usize) -> Result<Option<Vec<u8>>, Refused> {
    let _without_the_feature = (bytes, most);
    match packing {
        NONE => Ok(None),
        #[cfg(feature = "lz4")]
        LZ4 => {
            let (length, block) = bytes.split_first_chunk::<HEAD>().ok_or(Refused::Corrupt)?;
            let length = u32::from_be_bytes(*length) as usize;
            // A block of LZ4 has at most 255 times its bytes in it: a longer length is a lie that costs nothing.
            if length > most || length / 255 > block.len() {
                return Err(Refused::Corrupt);
            }
            match lz4_flex::block::decompress(block, length) {
                Ok(bytes) if bytes.len() == length => Ok(Some(bytes)),
                _ => Err(Refused::Corrupt),
            }
        }
        _ => Err(Refused::Foreign),
    }
}
