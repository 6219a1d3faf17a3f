//! The blocks that an `.oqz` file is made of: a mark, a version, and blocks with checksums, read and written in order.
//!
//! ```text
//! file    89 4F 51 5A 0D 0A 1A 0A   version (1 byte)   block …  end block
//! block   kind (1 byte)   length (4 bytes, LE)   payload   CRC-32 (4 bytes, LE)
//! ```
//!
//! The checksum covers kind, length, payload and the number of the block, so that blocks cannot be changed, left out,
//! repeated or swapped. The mark holds line ends of both kinds, as PNG's does: a file that went through a text mode is
//! recognized. Nothing is sought: files can be piped. A reader allocates what arrives, never what a length claims.

use std::io::{self, Read, Write};

use crc32fast::Hasher;

/// The first bytes of every file.
pub const MARK: [u8; 8] = *b"\x89OQZ\r\n\x1a\n";
/// The version that this program writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 1 << 22;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file system, or the writer behind a pipe.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error("is not an .oqz file: it does not begin with the mark of one")]
    Mark,
    /// A file of a later version.
    #[error("is of version {0}, and this program reads version {VERSION}: use a newer onnx-quant")]
    Version(u8),
    /// The file ends in the middle.
    #[error("is damaged: it ends in block {0}; get the file anew")]
    Truncated(u32),
    /// A checksum does not fit.
    #[error("is damaged: the checksum of block {0} does not fit; get the file anew")]
    Checksum(u32),
    /// A block that says what cannot be, with a checksum that fits.
    #[error("is damaged: block {block}: {what}; get the file anew")]
    Content {
        /// The block.
        block: u32,
        /// What is wrong.
        what: String,
    },
    /// Bytes behind the end.
    #[error("is damaged: there is more data behind its end; get the file anew")]
    Trailing,
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What it holds.
    pub kind: u8,
    /// Its content.
    pub payload: Vec<u8>,
}

fn checksum(number: u32, kind: u8, payload: &[u8]) -> u32 {
    let mut h = Hasher::new();
    h.update(&number.to_le_bytes());
    h.update(&[VERSION, kind]);
    h.update(&(payload.len() as u32).to_le_bytes());
    h.update(payload);
    h.finalize()
}

/// Writes blocks.
pub struct BlockWriter<W> {
    out: W,
    number: u32,
    /// Bytes written so far.
    pub bytes: u64,
}

impl<W: Write> BlockWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MARK)?;
        out.write_all(&[VERSION])?;
        Ok(Self {
            out,
            number: 0,
            bytes: MARK.len() as u64 + 1,
        })
    }

    /// Writes a block.
    ///
    /// # Errors
    /// The writer's; a payload over [`MAX_PAYLOAD`].
    pub fn block(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::other("a block is too long"));
        }
        self.out.write_all(&[kind])?;
        self.out.write_all(&(payload.len() as u32).to_le_bytes())?;
        self.out.write_all(payload)?;
        let sum = checksum(self.number, kind, payload);
        self.out.write_all(&sum.to_le_bytes())?;
        self.number += 1;
        self.bytes += payload.len() as u64 + 9;
        Ok(())
    }
}

/// Reads blocks.
pub struct BlockReader<R> {
    input: R,
    /// The number of the next block.
    pub number: u32,
}

impl<R: Read> BlockReader<R> {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// Another kind of file, or a later version.
    pub fn new(mut input: R) -> Result<Self, BlockError> {
        let mut head = [0u8; 9];
        match input.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(BlockError::Mark),
            Err(e) => return Err(e.into()),
        }
        if head[..8] != MARK {
            return Err(BlockError::Mark);
        }
        match head[8] {
            VERSION => Ok(Self { input, number: 0 }),
            other => Err(BlockError::Version(other)),
        }
    }

    /// Reads the next block.
    ///
    /// # Errors
    /// A damaged or truncated file.
    pub fn block(&mut self) -> Result<Block, BlockError> {
        let number = self.number;
        let mut head = [0u8; 5];
        self.exact(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(BlockError::Checksum(number));
        }
        let mut payload = Vec::new();
        (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut payload)?;
        if payload.len() < length {
            return Err(BlockError::Truncated(number));
        }
        let mut sum = [0u8; 4];
        self.exact(&mut sum)?;
        if u32::from_le_bytes(sum) != checksum(number, head[0], &payload) {
            return Err(BlockError::Checksum(number));
        }
        self.number += 1;
        Ok(Block {
            kind: head[0],
            payload,
        })
    }

    /// Checks that nothing follows.
    ///
    /// # Errors
    /// More data.
    pub fn end(mut self) -> Result<(), BlockError> {
        match self.input.read(&mut [0u8; 1])? {
            0 => Ok(()),
            _ => Err(BlockError::Trailing),
        }
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.input.read_exact(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => BlockError::Truncated(self.number),
            _ => e.into(),
        })
    }
}
