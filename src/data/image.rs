//! Folders of images: decoded, scaled, cut and normalized when their batch is read.

mod recipe;
mod resize;

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageReader};
use onnx_quant_ir::DataType;
use onnx_quant_ir::Model;

use super::dataset::Made;
use super::error::DataError;
use super::files;
use super::fill::{Fills, listed, put_float};
use super::image_spec::{Channels, Crop, ImageLayout, Resize};
use super::items::{ItemLayout, Items};
use super::signature::Signature;
use super::spec::DataSpec;
use recipe::{Affine, Recipe};
use resize::Pixels;

const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];
/// Bytes that decoding one image may take: a broken header asks for any amount.
const MEMORY: u64 = 1 << 30;

#[derive(Debug)]
struct ImageItems {
    files: Vec<PathBuf>,
    recipe: Recipe,
    dtype: DataType,
}

/// The images of a folder for the one input that takes them.
pub(super) fn made(
    spec: &DataSpec,
    model: &Model,
    signature: &Signature,
    fills: &Fills,
) -> Result<Made, DataError> {
    let fits = |&i: &usize| {
        let input = &signature.inputs[i];
        fills.0[i].is_none() && !input.optional && matches!(input.rank(), Some(3 | 4))
    };
    let places: Vec<usize> = (0..signature.inputs.len()).filter(fits).collect();
    let place = match places[..] {
        [place] => place,
        [] => {
            return Err(DataError::Spec(format!(
                "{}: images are for an input with three or four axes, but the model's inputs are {}",
                spec.path.display(),
                signature
                    .inputs
                    .iter()
                    .map(|i| format!("`{}` {i}", i.name))
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        _ => {
            return Err(DataError::Spec(format!(
                "{}: the inputs {} all could take the images; give the others with --input NAME=VALUE",
                spec.path.display(),
                listed(places.iter().map(|&i| &signature.inputs[i]))
            )));
        }
    };
    let input = &signature.inputs[place];
    let batched = input.rank() == Some(4);
    let (recipe, mut notes) = spec.image.recipe(input, batched)?;
    let found = files::find(&spec.path, &ENDINGS)?;
    notes.extend(found.note(&spec.path, "images"));
    let (classes, note) = found.classes(&spec.path, model);
    notes.extend(note);
    let layout = match batched {
        true => ItemLayout::Samples {
            piece: input.fixed(0),
        },
        false => ItemLayout::Feeds,
    };
    let items = ImageItems {
        files: found.paths,
        recipe,
        dtype: input.dtype,
    };
    Ok(Made {
        items: Box::new(items),
        layout,
        given: vec![place],
        notes,
        classes,
        skipped: 0,
    })
}

impl Items for ImageItems {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn dims(&self, _: usize) -> Vec<Vec<usize>> {
        let Recipe { size, depth, .. } = self.recipe;
        vec![match self.recipe.layout {
            ImageLayout::Nchw => vec![depth, size.height, size.width],
            ImageLayout::Nhwc => vec![size.height, size.width, depth],
        }]
    }

    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError> {
        let path = &self.files[index];
        let pixels = decode(path, self.recipe.depth)?;
        let pixels = self.recipe.fit(pixels, path)?;
        self.recipe.write(&pixels, self.dtype, &mut out[0])
    }

    fn file(&self, index: usize) -> Option<&Path> {
        Some(&self.files[index])
    }

    fn is_costly(&self) -> bool {
        true
    }
}

fn decode(path: &Path, depth: usize) -> Result<Pixels, DataError> {
    let bad = |reason: String| DataError::Bad {
        path: path.to_owned(),
        reason: format!("the image cannot be read ({reason}); --skip-bad leaves such files out"),
    };
    let reader = ImageReader::open(path).map_err(|e| DataError::io(path, e))?;
    let mut reader = reader
        .with_guessed_format()
        .map_err(|e| DataError::io(path, e))?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MEMORY);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| bad(e.to_string()))?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 {
        return Err(bad("it has no pixels".to_owned()));
    }
    let bytes = match (depth, image) {
        (1, DynamicImage::ImageLuma8(grey)) => grey.into_raw(),
        (1, DynamicImage::ImageLumaA8(grey)) => {
            grey.into_raw().chunks_exact(2).map(|p| p[0]).collect()
        }
        (1, other) => other
            .into_rgb8()
            .as_chunks::<3>()
            .0
            .iter()
            .map(luma)
            .collect(),
        (_, other) => other.into_rgb8().into_raw(),
    };
    Ok(Pixels {
        width,
        height,
        depth,
        bytes,
    })
}

/// ITU-R 601-2 as Pillow calculates it.
fn luma(&[r, g, b]: &[u8; 3]) -> u8 {
    let sum = u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000;
    (sum >> 16) as u8
}

impl Recipe {
    /// The image in the size of the input.
    fn fit(&self, image: Pixels, path: &Path) -> Result<Pixels, DataError> {
        let (height, width) = (self.size.height, self.size.width);
        let image = match self.resize {
            Resize::Exact => image.resize(height, width, self.filter),
            Resize::Shortest(short) => {
                let long = |side: usize, other: usize| (side * short / other).max(1);
                match image.width <= image.height {
                    true => {
                        let h = long(image.height, image.width);
                        image.resize(h, short, self.filter)
                    }
                    false => {
                        let w = long(image.width, image.height);
                        image.resize(short, w, self.filter)
                    }
                }
            }
            Resize::Fit(pad) => return Ok(self.fit_inside(image, pad)),
            Resize::None => image,
        };
        let too_small = image.height < height || image.width < width;
        let same = image.height == height && image.width == width;
        match self.crop {
            Crop::Center if !too_small => {
                let middle = |have: usize, want: usize| {
                    ((have - want) as f64 / 2.0).round_ties_even() as usize
                };
                let (top, left) = (middle(image.height, height), middle(image.width, width));
                Ok(image.cut(top, left, height, width))
            }
            _ if same => Ok(image),
            _ => Err(DataError::Bad {
                path: path.to_owned(),
                reason: format!(
                    "the image has {}x{} pixels (height x width) after --resize {}, but the input takes {}; give --resize exact, --resize fit, or shortest:N with --crop center",
                    image.height, image.width, self.resize, self.size
                ),
            }),
        }
    }

    /// Scaled to fit inside the size, in the middle of a canvas of one value.
    fn fit_inside(&self, image: Pixels, pad: u8) -> Pixels {
        let (height, width) = (self.size.height, self.size.width);
        let scale = (height as f64 / image.height as f64).min(width as f64 / image.width as f64);
        let side =
            |length: usize, most: usize| ((length as f64 * scale).round() as usize).clamp(1, most);
        let (h, w) = (side(image.height, height), side(image.width, width));
        let small = image.resize(h, w, self.filter);
        let depth = small.depth;
        let mut bytes = vec![pad; height * width * depth];
        let (top, left) = ((height - h) / 2, (width - w) / 2);
        for (i, row) in small.bytes.chunks_exact(w * depth).enumerate() {
            let at = ((top + i) * width + left) * depth;
            bytes[at..at + row.len()].copy_from_slice(row);
        }
        Pixels {
            width,
            height,
            depth,
            bytes,
        }
    }

    /// Appends the image as the input takes it.
    fn write(&self, image: &Pixels, dtype: DataType, out: &mut Vec<u8>) -> Result<(), DataError> {
        let depth = self.depth;
        let source = |channel: usize| match self.channels {
            Channels::Rgb => channel,
            Channels::Bgr => depth - 1 - channel,
        };
        // 256 values of each channel are all there are.
        let mut tables: Vec<Vec<Vec<u8>>> = Vec::with_capacity(depth);
        for affine in &self.values {
            let mut table = Vec::with_capacity(256);
            for pixel in 0..=255_u8 {
                table.push(encode(pixel, *affine, dtype)?);
            }
            tables.push(table);
        }
        let pixels = image.bytes.chunks_exact(depth);
        match self.layout {
            ImageLayout::Nchw => {
                for (channel, table) in tables.iter().enumerate() {
                    let values = pixels
                        .clone()
                        .map(|p| &table[usize::from(p[source(channel)])]);
                    values.for_each(|v| out.extend_from_slice(v));
                }
            }
            ImageLayout::Nhwc => {
                for pixel in pixels {
                    for (channel, table) in tables.iter().enumerate() {
                        out.extend_from_slice(&table[usize::from(pixel[source(channel)])]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The value of a pixel in the input's type.
fn encode(pixel: u8, affine: Affine, dtype: DataType) -> Result<Vec<u8>, DataError> {
    use onnx_quant_ir::dtype::DataTypeExt;
    let mut bytes = Vec::new();
    let done = match dtype.is_float() {
        true => put_float(affine.value(pixel), dtype, &mut bytes),
        false => super::fill::put_integer(i64::from(pixel), dtype, &mut bytes),
    };
    done.map_err(DataError::Spec)?;
    Ok(bytes)
}
