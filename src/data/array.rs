//! One array of the data: what it is, and a stream of its elements as ONNX stores them (row-major, little-endian).

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::proto::{Message, TensorProto};
use onnx_quant_ir::{DataType, Tensor};

use super::archive::Place;
use super::error::{DataError, Origin};
use super::npy::{self, Head, HeadError, item_size};

/// An array that has been found and looked at, but not read.
#[derive(Debug, Clone)]
pub(super) struct Array {
    pub(super) origin: Origin,
    pub(super) dtype: DataType,
    pub(super) dims: Vec<usize>,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    Npy(Place, Head),
    /// Bytes in ONNX's own order.
    Raw(Place),
    /// A `TensorProto` in a file.
    Proto,
}

impl Array {
    /// An array in `.npy` form.
    pub(super) fn npy(origin: Origin, place: Place) -> Result<Self, DataError> {
        let io = |e| DataError::io(&origin.path, e);
        let head = match npy::read_head(&mut place.open().map_err(io)?) {
            Ok(head) => head,
            Err(HeadError::Damaged(reason)) => return Err(DataError::Damaged { origin, reason }),
            Err(HeadError::Unsupported(descr)) => {
                return Err(DataError::Unsupported { origin, descr });
            }
        };
        let needed = head.head_size as u64 + head.data_size as u64;
        if needed != place.size {
            let reason = format!(
                "shape {:?} of {} needs {} bytes, but {} are there",
                head.dims,
                head.dtype.short_name(),
                head.data_size,
                place.size.saturating_sub(head.head_size as u64)
            );
            return Err(DataError::Damaged { origin, reason });
        }
        Ok(Self {
            origin,
            dtype: head.dtype,
            dims: head.dims.clone(),
            store: Store::Npy(place, head),
        })
    }

    /// An array whose bytes lie in ONNX's own order.
    pub(super) fn raw(origin: Origin, dtype: DataType, dims: Vec<usize>, place: Place) -> Self {
        Self {
            origin,
            dtype,
            dims,
            store: Store::Raw(place),
        }
    }

    /// File and offset of the elements, where they lie there row by row as they are.
    pub(super) fn lies_open(&self) -> Option<(&Path, u64)> {
        match &self.store {
            Store::Npy(place, head) if !head.fortran => place.lies_open(head.head_size as u64),
            Store::Raw(place) => place.lies_open(0),
            _ => None,
        }
    }

    /// A `TensorProto` file, with the name that stands in it.
    pub(super) fn proto(path: &Arc<Path>) -> Result<(Self, String), DataError> {
        let origin = Origin {
            path: Arc::clone(path),
            array: None,
        };
        let tensor = read_proto(&origin)?;
        let name = tensor.proto().name().to_owned();
        let dims = tensor.dims().iter().map(|&d| usize::try_from(d));
        let dims = dims.collect::<Result<_, _>>().unwrap_or_default();
        let array = Self {
            dtype: tensor.dtype(),
            dims,
            origin,
            store: Store::Proto,
        };
        Ok((array, name))
    }

    /// Whether the axis order forces the array to be held as a whole while it is read.
    pub(super) fn is_fortran(&self) -> bool {
        matches!(&self.store, Store::Npy(_, head) if head.fortran)
    }

    /// Bytes of one index of axis 0.
    pub(super) fn sample_size(&self) -> usize {
        let inner = self.dims.iter().skip(1).product::<usize>();
        inner * item_size(self.dtype)
    }

    /// Bytes of the whole array.
    pub(super) fn size(&self) -> usize {
        match self.dtype.bits() {
            Some(bits) => (self.dims.iter().product::<usize>() * bits).div_ceil(8),
            None => 0,
        }
    }

    /// A stream from the first element on.
    pub(super) fn open(&self) -> Result<Stream, DataError> {
        let source: Box<dyn Read + Send> = match &self.store {
            Store::Proto => {
                let tensor = read_proto(&self.origin)?;
                let dims = tensor.dims().iter().map(|&d| usize::try_from(d).ok());
                let same =
                    tensor.dtype() == self.dtype && dims.eq(self.dims.iter().map(|&d| Some(d)));
                match tensor.shared_bytes() {
                    Ok(bytes) if same => Box::new(Cursor::new(bytes)),
                    Ok(_) => return Err(self.damaged("it changed while it was used")),
                    Err(e) => return Err(self.damaged(e)),
                }
            }
            Store::Raw(place) => Box::new(
                place
                    .open()
                    .map_err(|e| DataError::io(&self.origin.path, e))?,
            ),
            Store::Npy(place, head) => {
                let mut reader = place
                    .open()
                    .map_err(|e| DataError::io(&self.origin.path, e))?;
                match npy::read_head(&mut reader) {
                    Ok(now) if now == *head => {}
                    _ => return Err(self.damaged("it changed while it was used")),
                }
                if head.fortran {
                    let mut whole = Vec::new();
                    fill(&mut reader, self.size(), &mut whole, &self.origin)?;
                    let whole = row_major(&whole, &self.dims, item_size(self.dtype));
                    Box::new(Cursor::new(whole))
                } else {
                    Box::new(reader)
                }
            }
        };
        Ok(Stream { source })
    }

    /// Reads the next `bytes` bytes to the end of `out`, in ONNX's byte order, and checks the values.
    /// `sample` is the index of the first sample among them, for errors.
    pub(super) fn read(
        &self,
        stream: &mut Stream,
        bytes: usize,
        sample: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let start = out.len();
        fill(&mut stream.source, bytes, out, &self.origin)?;
        self.finish(&mut out[start..], sample)
    }

    /// Brings bytes as they lie in the file into ONNX's order and checks the values.
    pub(super) fn finish(&self, fresh: &mut [u8], sample: usize) -> Result<(), DataError> {
        if matches!(&self.store, Store::Npy(_, head) if head.big_endian) {
            for item in fresh.chunks_exact_mut(item_size(self.dtype)) {
                item.reverse();
            }
        }
        self.check_values(fresh, sample)
    }

    fn check_values(&self, bytes: &[u8], sample: usize) -> Result<(), DataError> {
        let bad = match self.dtype {
            DataType::Float => find(bytes, |b| {
                u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000
            }),
            DataType::Double => find(bytes, |b| {
                u64::from_le_bytes(b) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000
            }),
            DataType::Float16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            DataType::Bfloat16 => find(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            DataType::Bool => {
                return match find(bytes, |[b]| b > 1) {
                    Some(i) => Err(self.damaged(format!(
                        "it holds the byte {}, where a bool is 0 or 1",
                        bytes[i]
                    ))),
                    None => Ok(()),
                };
            }
            _ => None,
        };
        let Some(index) = bad else { return Ok(()) };
        let size = item_size(self.dtype);
        let value = match self.float(&bytes[index * size..]) {
            x if x.is_nan() => "NaN",
            x if x > 0.0 => "inf",
            _ => "-inf",
        };
        Err(DataError::NotFinite {
            origin: self.origin.clone(),
            sample: sample + index * size / self.sample_size().max(1),
            value,
        })
    }

    /// The first element, rounded to FP32.
    fn float(&self, bytes: &[u8]) -> f32 {
        let one = bytes[..item_size(self.dtype)].to_vec();
        let tensor = Tensor::from_raw(self.dtype, &[], one);
        tensor.to_f32().map_or(f32::NAN, |v| v[0])
    }

    pub(super) fn damaged(&self, reason: impl ToString) -> DataError {
        DataError::Damaged {
            origin: self.origin.clone(),
            reason: reason.to_string(),
        }
    }
}

/// An array while it is read.
pub(super) struct Stream {
    source: Box<dyn Read + Send>,
}

fn read_proto(origin: &Origin) -> Result<Tensor, DataError> {
    let damaged = |reason: String| DataError::Damaged {
        origin: origin.clone(),
        reason,
    };
    let bytes = std::fs::read(&origin.path).map_err(|e| DataError::io(&origin.path, e))?;
    if bytes.is_empty() {
        return Err(damaged("it is empty".to_owned()));
    }
    let proto = TensorProto::decode(bytes::Bytes::from(bytes))
        .map_err(|e| damaged(format!("it is no ONNX tensor ({e})")))?;
    let tensor = Tensor::from_proto(proto);
    match (tensor.dtype(), tensor.validate()) {
        (_, Err(e)) => Err(damaged(e.to_string())),
        (DataType::String, _) => Err(DataError::Unsupported {
            origin: origin.clone(),
            descr: "strings".to_owned(),
        }),
        _ => Ok(tensor),
    }
}

/// Appends exactly `bytes` bytes.
fn fill(
    source: &mut dyn Read,
    bytes: usize,
    out: &mut Vec<u8>,
    origin: &Origin,
) -> Result<(), DataError> {
    out.try_reserve(bytes).map_err(|_| DataError::TooLarge {
        origin: origin.clone(),
        bytes,
    })?;
    let got = source
        .take(bytes as u64)
        .read_to_end(out)
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::InvalidData
            | std::io::ErrorKind::InvalidInput => DataError::Damaged {
                origin: origin.clone(),
                reason: e.to_string(),
            },
            _ => DataError::io(&origin.path, e),
        })?;
    if got != bytes {
        return Err(DataError::Damaged {
            origin: origin.clone(),
            reason: format!("it ends {} bytes early", bytes - got),
        });
    }
    Ok(())
}

/// The index of the first element for which `bad` holds. Blocks are tested without branches, which vectorizes.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let items = bytes.as_chunks::<N>().0;
    items.chunks(BLOCK).enumerate().find_map(|(i, block)| {
        let any = block.iter().fold(false, |any, &x| any | bad(x));
        any.then(|| block.iter().position(|&x| bad(x)))
            .flatten()
            .map(|p| i * BLOCK + p)
    })
}

/// From first-axis-fastest to last-axis-fastest order.
fn row_major(column_major: &[u8], dims: &[usize], item: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(dims.len());
    let mut step = item;
    for &d in dims {
        strides.push(step);
        step *= d;
    }
    let mut out = Vec::with_capacity(column_major.len());
    let (mut index, mut offset) = (vec![0; dims.len()], 0);
    while out.len() < column_major.len() {
        out.extend_from_slice(&column_major[offset..offset + item]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            offset -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
    }
    out
}
