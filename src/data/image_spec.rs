//! How images become tensors: the options, and what they come to for an input of the model.

use std::fmt;
use std::str::FromStr;

use onnx_quant_ir::dtype::DataTypeExt;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::signature::Input;

/// The options for images. What is absent comes from the preset, then from the model.
///
/// The value of a channel is `(pixel × scale − mean) / std`, where pixels are 0 to 255.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ImageSpec {
    /// Defaults of all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// What the model is fed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<ImageSize>,
    /// How an image is scaled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// What is cut out after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<Crop>,
    /// The filter of the scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// One for each channel in the order of `channels`, or one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// One for each channel in the order of `channels`, or one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
    /// Factor of the pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The order of the axes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<ImageLayout>,
    /// The order of the channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
}

/// A word on the command line and in the configuration for each variant.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("use one of {}", [$($word),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }
    };
}

words! {
    /// Common ways to prepare images.
    Preset {
        /// Shorter side to 256/224 of the size, centre cut out, RGB, ImageNet's mean and deviation of values 0 to 1.
        Imagenet = "imagenet",
        /// The same cut, BGR, ImageNet's mean of values 0 to 255 subtracted.
        ImagenetCaffe = "imagenet-caffe",
        /// Values 0 to 1.
        Unit = "unit",
        /// Values 0 to 255.
        Raw = "raw",
    }
}

words! {
    /// What is cut out of a scaled image.
    Crop {
        /// The middle.
        Center = "center",
        /// Nothing.
        None = "none",
    }
}

words! {
    /// Filters with antialiasing, as Pillow has them.
    Filter {
        /// A triangle.
        Bilinear = "bilinear",
        /// Keys's cubic with a = -1/2.
        Bicubic = "bicubic",
        /// Three lobes.
        Lanczos = "lanczos",
    }
}

words! {
    /// The order of the axes behind that of the batch.
    ImageLayout {
        /// Channels first.
        Nchw = "nchw",
        /// Channels last.
        Nhwc = "nhwc",
    }
}

words! {
    /// The order of the channels.
    Channels {
        /// Red first.
        Rgb = "rgb",
        /// Blue first.
        Bgr = "bgr",
    }
}

/// Height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        match (height.parse(), width.parse()) {
            (Ok(height), Ok(width))
                if (1..=65_535).contains(&height) && (1..=65_535).contains(&width) =>
            {
                Ok(Self { height, width })
            }
            _ => Err("give HEIGHTxWIDTH, as 224x224".to_owned()),
        }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// How an image is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Resize {
    /// To the size of the input, whatever the proportions.
    Exact,
    /// So that the shorter side has this length; proportions stay.
    Shortest(usize),
    /// As large as fits, the rest filled with this value; proportions stay.
    Fit(u8),
    /// Not at all.
    None,
}

impl FromStr for Resize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, value) = match text.split_once(':') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        match (word, value) {
            ("exact", None) => Ok(Self::Exact),
            ("none", None) => Ok(Self::None),
            ("fit", None) => Ok(Self::Fit(114)),
            ("fit", Some(v)) => v
                .parse()
                .map(Self::Fit)
                .map_err(|_| "fit takes a pixel value, 0 to 255".to_owned()),
            ("shortest", Some(v)) => match v.parse() {
                Ok(n) if (1..=65_535).contains(&n) => Ok(Self::Shortest(n)),
                _ => Err("give the length of the shorter side, as shortest:256".to_owned()),
            },
            _ => Err("use exact, shortest:256, fit, fit:114 or none".to_owned()),
        }
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Shortest(n) => write!(f, "shortest:{n}"),
            Self::Fit(pad) => write!(f, "fit:{pad}"),
            Self::None => f.write_str("none"),
        }
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(ImageSize, Resize);

/// Reads a factor: `0.0039`, or a fraction as `1/255`.
///
/// # Errors
/// Text that is neither.
pub fn parse_scale(text: &str) -> Result<f64, String> {
    let (above, below) = text.split_once('/').unwrap_or((text, "1"));
    match (above.trim().parse::<f64>(), below.trim().parse::<f64>()) {
        (Ok(a), Ok(b)) if (a / b).is_finite() && a / b != 0.0 => Ok(a / b),
        _ => Err("give a factor, as 1/255 or 0.0039".to_owned()),
    }
}

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
    #[cfg(feature = "images")]
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
