//! Runs a model over a data set and keeps its outputs, to be saved as an `.npz` with one array for each output.

use std::io::{self, Write};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{DataType, Model, Tensor, TensorError};
use rayon::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::calibrate::windows;
use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::prepared::Prepared;
use crate::progress;

/// One output of a model for all samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its element type as NumPy writes it, `<f4` for example. Types that NumPy lacks are converted to FP32.
    pub descr: &'static str,
    /// Its shape, samples on axis 0. Where the data holds complete feeds, axis 0 is put before the output's own axes.
    pub dims: Vec<usize>,
    /// Its elements in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

/// Runs all samples; batches run in parallel and the outputs keep the order of the samples.
///
/// # Errors
/// Data that does not fit, a model that cannot be run, or outputs that do not have one shape for all samples.
pub fn run(model: &Model, engine: &Arc<dyn Engine>, data: &DataSet) -> Result<Vec<Output>, Error> {
    let prepared = Prepared::new(engine, model, Vec::new());
    let names: Vec<String> = model
        .main()
        .outputs
        .iter()
        .map(|&v| model.value(v).name.clone())
        .collect();
    let feeds = data.holds_feeds();
    let bar = progress::bar("run", data.len());
    let mut all: Vec<Output> = Vec::new();
    for window in windows(data, rayon::current_num_threads()) {
        let window = window?;
        let parts = window
            .par_iter()
            .map(|b| batch(&prepared, data, b, &names, feeds))
            .collect::<Result<Vec<_>, Error>>()?;
        for part in parts {
            if all.is_empty() {
                all = part;
                continue;
            }
            for (mine, theirs) in all.iter_mut().zip(part) {
                mine.append(theirs)?;
            }
        }
        bar.inc(window.iter().map(|b| b.samples as u64).sum());
    }
    bar.finish_and_clear();
    Ok(all)
}

fn batch(
    prepared: &Prepared,
    data: &DataSet,
    batch: &Batch,
    names: &[String],
    feeds: bool,
) -> Result<Vec<Output>, Error> {
    let tensors = prepared.run(data, batch, None)?;
    let pairs = names.iter().zip(&tensors);
    pairs
        .map(|(name, t)| {
            let mut output = Output::new(name, t)
                .map_err(|e| Error::usage(format!("output `{name}` cannot be saved: {e}")))?;
            if feeds {
                output.dims.insert(0, 1);
            } else {
                output.keep(batch)?;
            }
            Ok(output)
        })
        .collect()
}

impl Output {
    fn new(name: &str, tensor: &Tensor) -> Result<Self, TensorError> {
        let (descr, bytes) = match descr(tensor.dtype()) {
            Some(d) => (d, tensor.bytes()?.into_owned()),
            None => {
                let values = tensor.to_f32()?;
                ("<f4", values.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        let size = |&d: &i64| usize::try_from(d).unwrap_or(0);
        Ok(Self {
            name: name.to_owned(),
            descr,
            dims: tensor.dims().iter().map(size).collect(),
            bytes,
        })
    }

    /// Cuts the rows of padding off.
    fn keep(&mut self, batch: &Batch) -> Result<(), Error> {
        let rows = batch.samples + batch.padded;
        if self.dims.first() != Some(&rows) {
            return Err(Error::usage(format!(
                "output `{}` has shape {:?}: its first axis is not that of the {rows} samples it was run on",
                self.name, self.dims
            )));
        }
        let row = self.bytes.len() / rows.max(1);
        self.bytes.truncate(row * batch.samples);
        self.dims[0] = batch.samples;
        Ok(())
    }

    fn append(&mut self, more: Self) -> Result<(), Error> {
        if self.dims[1..] != more.dims[1..] {
            return Err(Error::usage(format!(
                "output `{}` has shape {:?} for some samples and {:?} for others: they do not fit into one array",
                self.name,
                &self.dims[1..],
                &more.dims[1..]
            )));
        }
        self.dims[0] += more.dims[0];
        self.bytes.extend(more.bytes);
        Ok(())
    }

    /// The head of an `.npy` file, version 1.0 of NumPy's format: padded so that the data begins at a multiple of 64.
    fn npy_head(&self) -> Vec<u8> {
        let shape: String = self.dims.iter().map(|d| format!("{d}, ")).collect();
        let mut text = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
            self.descr,
            shape.trim_end()
        );
        let open = (10 + text.len() + 1) % 64;
        text.push_str(&" ".repeat((64 - open) % 64));
        text.push('\n');
        let mut head = b"\x93NUMPY\x01\x00".to_vec();
        // A shape has few axes, so that the text is far shorter than u16 can say.
        head.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        head.extend(text.into_bytes());
        head
    }
}

/// Writes outputs as an uncompressed `.npz`.
///
/// # Errors
/// What the writer says.
pub fn write_npz(outputs: &[Output], out: &mut dyn Write) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(out);
    for output in outputs {
        let large = u32::try_from(output.bytes.len()).is_err();
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(large);
        zip.start_file(format!("{}.npy", output.name), options)?;
        zip.write_all(&output.npy_head())?;
        zip.write_all(&output.bytes)?;
    }
    zip.finish()?;
    Ok(())
}

/// NumPy's name of a type that it has.
fn descr(dtype: DataType) -> Option<&'static str> {
    Some(match dtype {
        DataType::Float => "<f4",
        DataType::Double => "<f8",
        DataType::Float16 => "<f2",
        DataType::Int8 => "|i1",
        DataType::Int16 => "<i2",
        DataType::Int32 => "<i4",
        DataType::Int64 => "<i8",
        DataType::Uint8 => "|u1",
        DataType::Uint16 => "<u2",
        DataType::Uint32 => "<u4",
        DataType::Uint64 => "<u8",
        DataType::Bool => "|b1",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::path::Path;

    use super::*;
    use crate::data::Signature;

    fn output(dims: &[i64], values: &[f32]) -> Output {
        Output::new("y", &Tensor::from_f32(dims, values)).unwrap()
    }

    fn a_batch(samples: usize, padded: usize) -> Batch {
        Batch {
            index: 0,
            first_sample: 0,
            samples,
            padded,
            tensors: Vec::new(),
        }
    }

    #[test]
    fn padding_is_cut_and_batches_are_joined() {
        let mut all = output(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        all.keep(&a_batch(2, 0)).unwrap();
        let mut last = output(&[2, 2], &[5.0, 6.0, 5.0, 6.0]);
        last.keep(&a_batch(1, 1)).unwrap();
        all.append(last).unwrap();
        let mut expected = output(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        expected.name = all.name.clone();
        assert_eq!(all, expected);
    }

    #[test]
    fn outputs_without_a_sample_axis_are_refused() {
        let refused = output(&[3], &[1.0, 2.0, 3.0]).keep(&a_batch(2, 0));
        assert!(refused.unwrap_err().to_string().contains("first axis"));
        let mut one = output(&[1, 2], &[1.0, 2.0]);
        let refused = one.append(output(&[1, 3], &[1.0, 2.0, 3.0]));
        assert!(refused.unwrap_err().to_string().contains("[2]"));
    }

    #[test]
    fn what_is_written_can_be_read_as_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y.npz");
        let mut file = std::fs::File::create(&path).unwrap();
        write_npz(&[output(&[2, 1], &[0.5, -1.5])], &mut file).unwrap();
        let model = onnx_quant_ir::text::parse(
            "main (float[N,1] y) => (float[N,1] z)\n{\n  z = Relu (y)\n}\n",
        );
        let signature = Signature::of(&model.unwrap()).unwrap();
        let data = DataSet::open(Path::new(&path), &signature).unwrap();
        let batch = data.batches(8).next().unwrap().unwrap();
        assert_eq!(batch.tensors[0].to_f32().unwrap(), [0.5, -1.5]);
    }
}
