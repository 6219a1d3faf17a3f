//! How images become tensors: the options.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
