//! The `.oqz` file: a model whose clustered weights are entropy-coded, and the way back.
//!
//! ```text
//! about      JSON: what wrote the file, and what was done to the model
//! skeleton   the ModelProto without the bytes of its initializers, deflated; in pieces
//! weight     a clustered weight: which initializer, number of codes, codebook; followed by its codes, in pieces
//! tensor     another initializer: which, number of bytes; followed by its bytes, in pieces
//! end        SHA-256 of the skeleton and of all initializers as decoded
//! ```
//!
//! Initializers are numbered in the order in which they stand in the file, those of subgraphs behind the node that holds
//! them. What a reader allocates is bounded by what it has read: a piece has at most 65536 values.

use std::io::{Read, Write};

use bytes::Bytes;
use onnx_quant_ir::Model;
use onnx_quant_ir::dtype::{DataType, DataTypeExt};
use onnx_quant_ir::proto::{GraphProto, Message, ModelProto, TensorProto};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::block::{Block, BlockError, BlockReader, BlockWriter};
use super::codec::{self, CoderChoice, PIECE};

const ABOUT: u8 = 1;
const SKELETON: u8 = 2;
const WEIGHT: u8 = 3;
const CODES: u8 = 4;
const TENSOR: u8 = 5;
const BYTES: u8 = 6;
const END: u8 = 7;

/// Bytes of one piece of a skeleton or a tensor.
const BYTE_PIECE: usize = 1 << 18;
/// Tensors of fewer bytes stay in the skeleton.
const SMALL: usize = 32;
/// No pruned values.
const NO_ZERO: u16 = u16::MAX;

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Program and version.
    pub tool: String,
    /// Format of the weights.
    pub weights: String,
    /// Share of the weights that are pruned.
    pub sparsity: f64,
    /// Whether the weights were trained after pruning or clustering.
    pub fine_tuned: bool,
}

/// A clustered weight, by the name of its initializer.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustered {
    /// Place among the initializers; see [`initializers`].
    pub place: usize,
    /// Bits of a code.
    pub bits: u32,
    /// The code of pruned values.
    pub zero: Option<u8>,
    /// The entries.
    pub codebook: Vec<f32>,
    /// A code for each value.
    pub codes: Vec<u8>,
}

/// What the parts of a file take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Parts {
    /// Everything.
    pub file: u64,
    /// Codes of clustered weights.
    pub codes: u64,
    /// Their codebooks.
    pub codebooks: u64,
    /// Other tensors.
    pub tensors: u64,
    /// The graph.
    pub skeleton: u64,
}

/// The initializers of a model in the order of the file.
pub fn initializers(model: &mut ModelProto) -> Vec<&mut TensorProto> {
    let mut found = Vec::new();
    if let Some(graph) = &mut model.graph {
        gather(graph, &mut found);
    }
    found
}

fn gather<'a>(graph: &'a mut GraphProto, found: &mut Vec<&'a mut TensorProto>) {
    found.extend(graph.initializer.iter_mut());
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            if let Some(inner) = &mut attribute.g {
                gather(inner, found);
            }
            for inner in &mut attribute.graphs {
                gather(inner, found);
            }
        }
    }
}

/// Bytes of an element; 1 for types that are packed.
fn element(tensor: &TensorProto) -> usize {
    let bits = DataType::from_number(tensor.data_type()).and_then(|d| d.bits());
    bits.filter(|b| b % 8 == 0).map_or(1, |b| b / 8)
}

/// Writes a model whose initializers all stand in it (`save::inlined`). `weights` are in ascending places, and the
/// initializers hold what they decode to.
///
/// # Errors
/// The writer's.
pub fn write<W: Write>(
    out: W,
    mut model: ModelProto,
    weights: &[Clustered],
    about: &About,
    choice: CoderChoice,
) -> std::io::Result<Parts> {
    let mut file = BlockWriter::new(out)?;
    let mut parts = Parts::default();
    let mut digest = Sha256::new();
    let mut stored: Vec<(usize, Bytes, usize)> = Vec::new();
    for (place, tensor) in initializers(&mut model).into_iter().enumerate() {
        let clustered = weights.binary_search_by_key(&place, |w| w.place).is_ok();
        let size = element(tensor);
        let long = |data: &Bytes| clustered || data.len() >= SMALL;
        if tensor.raw_data.as_ref().is_some_and(long)
            && let Some(data) = tensor.raw_data.replace(Bytes::new())
        {
            stored.push((place, data, size));
        }
    }
    file.block(ABOUT, serde_json::to_string(about)?.as_bytes())?;
    let skeleton = model.encode_to_vec();
    digest.update(&skeleton);
    for piece in skeleton.chunks(BYTE_PIECE) {
        let (method, data) = codec::encode_bytes(piece, 1);
        parts.skeleton += data.len() as u64;
        file.block(SKELETON, &byte_piece(method, piece.len(), &data))?;
    }
    for (place, data, size) in stored {
        digest.update((place as u64).to_le_bytes());
        digest.update(&data);
        match weights.binary_search_by_key(&place, |w| w.place) {
            Ok(at) => write_weight(&mut file, &weights[at], size, choice, &mut parts)?,
            Err(_) => write_tensor(&mut file, place, &data, size, &mut parts)?,
        }
    }
    file.block(END, &digest.finalize())?;
    parts.file = file.bytes;
    Ok(parts)
}

fn byte_piece(method: u8, length: usize, data: &[u8]) -> Vec<u8> {
    let mut payload = vec![method];
    payload.extend((length as u32).to_le_bytes());
    payload.extend(data);
    payload
}

fn write_weight<W: Write>(
    file: &mut BlockWriter<W>,
    weight: &Clustered,
    size: usize,
    choice: CoderChoice,
    parts: &mut Parts,
) -> std::io::Result<()> {
    let mut head = (weight.place as u32).to_le_bytes().to_vec();
    head.extend((weight.codes.len() as u64).to_le_bytes());
    head.push(weight.bits as u8);
    head.extend(weight.zero.map_or(NO_ZERO, u16::from).to_le_bytes());
    for &entry in &weight.codebook {
        match size {
            2 => head.extend(half::f16::from_f32(entry).to_le_bytes()),
            _ => head.extend(entry.to_le_bytes()),
        }
    }
    parts.codebooks += (weight.codebook.len() * size) as u64;
    file.block(WEIGHT, &head)?;
    let pieces: Vec<Vec<u8>> = weight
        .codes
        .par_chunks(PIECE)
        .map(|codes| {
            let (method, data) = codec::encode_codes(codes, weight.bits, weight.zero, choice);
            byte_piece(method, codes.len(), &data)
        })
        .collect();
    for piece in pieces {
        parts.codes += piece.len() as u64;
        file.block(CODES, &piece)?;
    }
    Ok(())
}

fn write_tensor<W: Write>(
    file: &mut BlockWriter<W>,
    place: usize,
    data: &[u8],
    size: usize,
    parts: &mut Parts,
) -> std::io::Result<()> {
    let mut head = (place as u32).to_le_bytes().to_vec();
    head.extend((data.len() as u64).to_le_bytes());
    file.block(TENSOR, &head)?;
    for piece in data.chunks(BYTE_PIECE) {
        let (method, coded) = codec::encode_bytes(piece, size);
        parts.tensors += coded.len() as u64;
        file.block(BYTES, &byte_piece(method, piece.len(), &coded))?;
    }
    Ok(())
}

/// Reads a model back.
///
/// # Errors
/// A file of another kind or version, and any damage.
pub fn read<R: Read>(input: R) -> Result<(Model, About), BlockError> {
    let mut file = Reader {
        blocks: BlockReader::new(input)?,
        digest: Sha256::new(),
    };
    let first = file.blocks.block()?;
    if first.kind != ABOUT {
        return Err(file.damage("the file does not begin with what it says of itself"));
    }
    let about: About = serde_json::from_slice(&first.payload).map_err(|e| file.damage(e))?;
    let mut block = file.blocks.block()?;
    let mut skeleton = Vec::new();
    while block.kind == SKELETON {
        skeleton.extend(file.bytes(&block, 1)?);
        block = file.blocks.block()?;
    }
    file.digest.update(&skeleton);
    let mut model = ModelProto::decode(Bytes::from(skeleton)).map_err(|e| file.damage(e))?;
    let mut tensors = initializers(&mut model);
    let mut next = 0;
    while block.kind != END {
        let place = file.place(&block, next, tensors.len())?;
        next = place + 1;
        let tensor = &mut *tensors[place];
        if tensor.raw_data.as_ref().is_none_or(|d| !d.is_empty()) {
            return Err(file.damage("an initializer has its data twice"));
        }
        let (data, following) = match block.kind {
            WEIGHT => file.weight(&block, tensor)?,
            TENSOR => file.tensor(&block, tensor)?,
            other => {
                return Err(file.damage(format!(
                    "a block of kind {other} stands where a tensor begins"
                )));
            }
        };
        file.digest.update((place as u64).to_le_bytes());
        file.digest.update(&data);
        tensor.raw_data = Some(data.into());
        block = following;
    }
    if block.payload != file.digest.clone().finalize().as_slice() {
        return Err(file.damage("the model is not the one that was written"));
    }
    let number = file.blocks.number - 1;
    file.blocks.end()?;
    let model = Model::from_proto(model).map_err(|e| BlockError::Content {
        block: number,
        what: e.to_string(),
    })?;
    Ok((model, about))
}

struct Reader<R> {
    blocks: BlockReader<R>,
    digest: Sha256,
}

impl<R: Read> Reader<R> {
    fn damage(&self, what: impl ToString) -> BlockError {
        BlockError::Content {
            block: self.blocks.number.saturating_sub(1),
            what: what.to_string(),
        }
    }

    /// The initializer that a block belongs to: they come in ascending order.
    fn place(&self, block: &Block, next: usize, count: usize) -> Result<usize, BlockError> {
        let head = block.payload.first_chunk::<4>();
        let place = head.map(|b| u32::from_le_bytes(*b) as usize);
        place
            .filter(|p| (next..count).contains(p))
            .ok_or_else(|| self.damage("it belongs to no initializer"))
    }

    fn piece<'b>(
        &self,
        block: &'b Block,
        most: usize,
    ) -> Result<(u8, usize, &'b [u8]), BlockError> {
        let (head, data) = block
            .payload
            .split_first_chunk::<5>()
            .ok_or_else(|| self.damage("a piece is too short"))?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length == 0 || length > most {
            return Err(self.damage("a piece has no length or too large a one"));
        }
        Ok((head[0], length, data))
    }

    fn bytes(&self, block: &Block, size: usize) -> Result<Vec<u8>, BlockError> {
        let (method, length, data) = self.piece(block, BYTE_PIECE)?;
        codec::decode_bytes(method, data, length, size).map_err(|e| self.damage(e))
    }

    /// Number of values and bytes that the initializer's shape asks for.
    fn expected(&self, tensor: &TensorProto) -> Result<(usize, usize), BlockError> {
        let shape = onnx_quant_ir::Tensor::from_proto(TensorProto {
            raw_data: None,
            ..tensor.clone()
        });
        match (shape.element_count(), shape.byte_len()) {
            (Ok(count), Ok(bytes)) => Ok((count, bytes)),
            (Err(e), _) | (_, Err(e)) => Err(self.damage(e)),
        }
    }

    fn tensor(
        &mut self,
        head: &Block,
        tensor: &TensorProto,
    ) -> Result<(Vec<u8>, Block), BlockError> {
        let declared = head.payload.get(4..12).and_then(|b| b.first_chunk::<8>());
        let length = declared.map(|b| u64::from_le_bytes(*b) as usize);
        let (_, bytes) = self.expected(tensor)?;
        if length != Some(bytes) || head.payload.len() != 12 {
            return Err(self.damage("the data does not fit the shape"));
        }
        let size = element(tensor);
        let mut data = Vec::new();
        let mut block = self.blocks.block()?;
        while block.kind == BYTES {
            data.extend(self.bytes(&block, size)?);
            if data.len() > bytes {
                break;
            }
            block = self.blocks.block()?;
        }
        match data.len() == bytes {
            true => Ok((data, block)),
            false => Err(self.damage("the data does not fit the shape")),
        }
    }

    fn weight(
        &mut self,
        head: &Block,
        tensor: &TensorProto,
    ) -> Result<(Vec<u8>, Block), BlockError> {
        let (fixed, book) = head
            .payload
            .split_first_chunk::<15>()
            .ok_or_else(|| self.damage("a weight's head is too short"))?;
        let count = fixed[4..12]
            .iter()
            .rev()
            .fold(0u64, |n, &b| n << 8 | u64::from(b)) as usize;
        let bits = u32::from(fixed[12]);
        let zero = match u16::from_le_bytes([fixed[13], fixed[14]]) {
            NO_ZERO => None,
            code => Some(u8::try_from(code).map_err(|e| self.damage(e))?),
        };
        let size = match DataType::from_number(tensor.data_type()) {
            Some(DataType::Float) => 4,
            Some(DataType::Float16) => 2,
            _ => return Err(self.damage("a weight is not of type f32 or f16")),
        };
        let (values, _) = self.expected(tensor)?;
        let entries = book.len() / size;
        let fits = book.len() % size == 0 && (1..=8).contains(&bits) && entries <= 1 << bits;
        if count != values || !fits || (entries == 0 && count > 0) {
            return Err(self.damage("a weight's head contradicts its shape"));
        }
        let entries: Vec<&[u8]> = book.chunks_exact(size).collect();
        let mut data = Vec::new();
        let mut left = count;
        let mut block = self.blocks.block()?;
        while block.kind == CODES {
            let (method, length, coded) = self.piece(&block, PIECE.min(left))?;
            let codes = codec::decode_codes(method, coded, bits, zero, length, entries.len());
            for code in codes.map_err(|e| self.damage(e))? {
                data.extend_from_slice(entries[usize::from(code)]);
            }
            left -= length;
            block = self.blocks.block()?;
        }
        match left {
            0 => Ok((data, block)),
            _ => Err(self.damage("a weight has too few codes")),
        }
    }
}
