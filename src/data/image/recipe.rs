//! What the options for images come to for an input of the model.

use onnx_quant_ir::dtype::DataTypeExt;

use crate::data::error::DataError;
use crate::data::image_spec::{
    Channels, Crop, Filter, ImageLayout, ImageSize, ImageSpec, Preset, Resize,
};
use crate::data::signature::Input;

/// What the options come to for one input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recipe {
    pub(super) size: ImageSize,
    pub(super) resize: Resize,
    pub(super) crop: Crop,
    pub(super) filter: Filter,
    /// 1 (grey) or 3.
    pub(super) depth: usize,
    pub(super) channels: Channels,
    pub(super) layout: ImageLayout,
    /// What the values of each channel are made with, in the order of `channels`.
    pub(super) values: Vec<Affine>,
}

/// `(pixel × scale − mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine {
    scale: f64,
    mean: f64,
    std: f64,
}

impl Affine {
    pub(super) fn value(&self, pixel: u8) -> f64 {
        (f64::from(pixel) * self.scale - self.mean) / self.std
    }
}

const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// Blue, green, red.
const CAFFE_MEAN: [f64; 3] = [103.939, 116.779, 123.68];

impl ImageSpec {
    /// What the options come to for an input of three or four axes, and what the user should know of it.
    pub(super) fn recipe(
        &self,
        input: &Input,
        batched: bool,
    ) -> Result<(Recipe, Vec<String>), DataError> {
        let (layout, depth) = self.axes(input, batched)?;
        let size = self.size(input, batched, layout)?;
        let whole = !input.dtype.is_float();
        let mut notes = Vec::new();
        let preset = self
            .preset
            .unwrap_or(if whole { Preset::Raw } else { Preset::Unit });
        if whole && preset != Preset::Raw {
            return Err(DataError::Spec(format!(
                "--preset {preset}: the input `{}` takes {}, for which only raw pixels fit: --preset raw",
                input.name,
                input.dtype.short_name()
            )));
        }
        if whole && (self.mean.is_some() || self.std.is_some() || self.scale.is_some()) {
            return Err(DataError::Spec(format!(
                "the input `{}` takes {}: --mean, --std and --scale do not fit, its pixels are fed as they are",
                input.name,
                input.dtype.short_name()
            )));
        }
        let told = self.preset.is_some()
            || self.mean.is_some()
            || self.std.is_some()
            || self.scale.is_some();
        if !told && !whole {
            notes.push(
                "images: values are fed as 0 to 1; if the model was trained otherwise, say so with --preset, or --mean, --std and --scale"
                    .to_owned(),
            );
        }
        let cut = matches!(preset, Preset::Imagenet | Preset::ImagenetCaffe);
        let short = size.height.min(size.width);
        let resize = self.resize.unwrap_or(match cut {
            true => Resize::Shortest((short * 256).div_ceil(224)),
            false => Resize::Exact,
        });
        let crop = self.crop.unwrap_or(match resize {
            Resize::Shortest(_) => Crop::Center,
            _ => Crop::None,
        });
        let caffe = preset == Preset::ImagenetCaffe;
        let channels = self
            .channels
            .unwrap_or(if caffe { Channels::Bgr } else { Channels::Rgb });
        let values = self.values(preset, channels, depth)?;
        let recipe = Recipe {
            size,
            resize,
            crop,
            filter: self.filter.unwrap_or(Filter::Bilinear),
            depth,
            channels,
            layout,
            values,
        };
        Ok((recipe, notes))
    }

    fn axes(&self, input: &Input, batched: bool) -> Result<(ImageLayout, usize), DataError> {
        let first = usize::from(batched);
        let (front, back) = (input.fixed(first), input.fixed(first + 2));
        let is_depth = |n: &usize| matches!(n, 1 | 3);
        let guess = match (front.filter(is_depth), back.filter(is_depth)) {
            (Some(_), _) => Some(ImageLayout::Nchw),
            (None, Some(_)) => Some(ImageLayout::Nhwc),
            _ => None,
        };
        let refuse = |reason: &str| {
            DataError::Spec(format!(
                "images do not fit the input `{}`, which is {input}: {reason}",
                input.name
            ))
        };
        let layout = self
            .layout
            .or(guess)
            .ok_or_else(|| refuse("no axis has size 1 or 3; give --layout nchw or nhwc"))?;
        let depth = match layout {
            ImageLayout::Nchw => front,
            ImageLayout::Nhwc => back,
        };
        match depth {
            None => Ok((layout, 3)),
            Some(n @ (1 | 3)) => Ok((layout, n)),
            Some(n) => Err(refuse(&format!(
                "with the layout {layout} it has {n} channels, but an image has 1 or 3"
            ))),
        }
    }

    fn size(
        &self,
        input: &Input,
        batched: bool,
        layout: ImageLayout,
    ) -> Result<ImageSize, DataError> {
        let first = usize::from(batched) + usize::from(layout == ImageLayout::Nchw);
        let fixed = (input.fixed(first), input.fixed(first + 1));
        let clash = |given: ImageSize| {
            fixed.0.is_some_and(|h| h != given.height) || fixed.1.is_some_and(|w| w != given.width)
        };
        match (self.image_size, fixed) {
            (Some(given), _) if clash(given) => Err(DataError::Spec(format!(
                "--image-size {given}: the input `{}` is {input} ({layout})",
                input.name
            ))),
            (Some(given), _) => Ok(given),
            (None, (Some(height), Some(width))) => Ok(ImageSize { height, width }),
            (None, _) => Err(DataError::Spec(format!(
                "the model leaves the size of the input `{}` free ({input}): give --image-size, as 224x224",
                input.name
            ))),
        }
    }

    /// What the values of each channel are made with.
    fn values(
        &self,
        preset: Preset,
        channels: Channels,
        depth: usize,
    ) -> Result<Vec<Affine>, DataError> {
        let rgb = |values: [f64; 3]| match channels {
            Channels::Rgb => values.to_vec(),
            Channels::Bgr => values.iter().rev().copied().collect(),
        };
        let (scale, mean, std) = match preset {
            Preset::Imagenet => (1.0 / 255.0, rgb(IMAGENET_MEAN), rgb(IMAGENET_STD)),
            Preset::ImagenetCaffe => {
                let [b, g, r] = CAFFE_MEAN;
                (1.0, rgb([r, g, b]), vec![1.0])
            }
            Preset::Unit => (1.0 / 255.0, vec![0.0], vec![1.0]),
            Preset::Raw => (1.0, vec![0.0], vec![1.0]),
        };
        let scale = self.scale.unwrap_or(scale);
        let mean = spread("--mean", self.mean.as_ref().unwrap_or(&mean), depth)?;
        let std = spread("--std", self.std.as_ref().unwrap_or(&std), depth)?;
        if std.contains(&0.0) {
            return Err(DataError::Spec("--std must not be 0".to_owned()));
        }
        let pairs = mean.into_iter().zip(std);
        Ok(pairs
            .map(|(mean, std)| Affine { scale, mean, std })
            .collect())
    }
}

/// One value for each channel.
fn spread(option: &str, values: &[f64], depth: usize) -> Result<Vec<f64>, DataError> {
    if values.iter().any(|v| !v.is_finite()) {
        return Err(DataError::Spec(format!("{option} must be finite")));
    }
    match values {
        [one] => Ok(vec![*one; depth]),
        many if many.len() == depth => Ok(many.to_vec()),
        // A grey image: the mean of the three.
        [a, b, c] if depth == 1 && (option == "--mean" || option == "--std") => {
            Ok(vec![(a + b + c) / 3.0])
        }
        many => Err(DataError::Spec(format!(
            "{option} holds {} values, but the input has {depth} channels",
            many.len()
        ))),
    }
}
