//! The options that say how data becomes tensors and which samples are used: the same for every command that takes
//! data.

use std::path::{Path, PathBuf};

use onnx_quant::data::{
    Channels, Crop, DataSpec, Filter, ImageLayout, ImageSize, ImageSpec, InputValue, Preset,
    Resize, parse_scale,
};

use clap::ValueEnum;

use super::Global;
use super::storage::ScaleWord;

/// The options of data. [`DataArgs::spec`] joins them with a path.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    /// Use at most N samples
    #[arg(long, alias = "limit", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,
    /// Take the samples in random order (--seed), so that --samples takes a random part
    #[arg(long)]
    shuffle: bool,
    /// Leave out images and recordings that cannot be read, and count them, instead of failing
    #[arg(long)]
    skip_bad: bool,
    /// Feed this input, which the data does not give: a number, a list as [1,2], or an .npy file (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = InputValue::parse_pair)]
    input: Vec<(String, InputValue)>,
    /// Images: common preparations, imagenet, imagenet-caffe, unit (0 to 1) or raw (0 to 255)
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    /// Images: height and width of the input [default: what the model says]
    #[arg(long, value_name = "HxW")]
    image_size: Option<ImageSize>,
    /// Images: exact, shortest:256, fit (with a border) or none [default: exact, or that of the preset]
    #[arg(long, value_name = "HOW")]
    resize: Option<Resize>,
    /// Images: what is cut out after that, center or none [default: center after shortest]
    #[arg(long, value_name = "HOW")]
    crop: Option<Crop>,
    /// Images: the filter of the scaling, bilinear, bicubic or lanczos [default: always bilinear]
    #[arg(long, value_name = "NAME")]
    filter: Option<Filter>,
    /// Images: subtracted from pixel x scale, one for each channel
    #[arg(
        long,
        value_name = "M,M,M",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    mean: Option<Vec<f64>>,
    /// Images: divisor after that, one for each channel
    #[arg(long, value_name = "S,S,S", value_delimiter = ',')]
    std: Option<Vec<f64>>,
    /// Images: factor of the pixels, which are 0 to 255 [default: 1/255, or that of the preset]; quantize: pow2 makes the
    /// scales of codes powers of two, as --scale-kind does (both may be given, each with a --scale of its own)
    #[arg(long, value_name = "X", value_parser = ScaleValue::parse)]
    scale: Vec<ScaleValue>,
    /// Images: order of the axes, nchw or nhwc [default: what the model says]
    #[arg(long, value_name = "ORDER")]
    layout: Option<ImageLayout>,
    /// Images: order of the channels, rgb or bgr [default: rgb, or that of the preset]
    #[arg(long, value_name = "ORDER")]
    channels: Option<Channels>,
    /// Text: the tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Text: tokens of a sample, cut from the whole text [default: a line is a sample]; audio: values of a sample
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    window: Option<u32>,
    /// Audio: samples a second that every recording must have [default: those of the first]
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// What `--scale` says: a number is about images, a word about the scales of codes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ScaleValue {
    /// The factor of pixels.
    Pixels(f64),
    /// What the scales of codes may be.
    Codes(ScaleWord),
}

impl ScaleValue {
    fn parse(text: &str) -> Result<Self, String> {
        let number = parse_scale(text);
        if number.is_err() && text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let word = ScaleWord::from_str(text, true);
            let refuse =
                |_| format!("give a factor of pixels, as 1/255, or float or pow2, not `{text}`");
            return word.map(Self::Codes).map_err(refuse);
        }
        number.map(Self::Pixels)
    }
}

impl DataArgs {
    /// The word of `--scale`, which is about codes and not about data.
    pub(crate) fn scale_word(&self) -> Option<ScaleWord> {
        self.scale.iter().find_map(|s| match s {
            ScaleValue::Codes(word) => Some(*word),
            ScaleValue::Pixels(_) => None,
        })
    }

    /// The options for a command that quantizes nothing.
    ///
    /// # Errors
    /// A `--scale` that is about codes, or two factors.
    pub(crate) fn only_data(&self) -> anyhow::Result<&Self> {
        if self.scale_word().is_some() {
            anyhow::bail!(
                "--scale: float and pow2 are about the scales of codes and belong to `quantize`; here give a factor of pixels, as 1/255"
            );
        }
        self.single_scale()
    }

    /// The options, where each kind of `--scale` was given once at most.
    ///
    /// # Errors
    /// Two factors, or two words.
    pub(crate) fn single_scale(&self) -> anyhow::Result<&Self> {
        let words = self
            .scale
            .iter()
            .filter(|s| matches!(s, ScaleValue::Codes(_)))
            .count();
        if words > 1 || self.scale.len() - words > 1 {
            anyhow::bail!(
                "--scale was given twice: one factor of pixels and one of float or pow2 are enough"
            );
        }
        Ok(self)
    }

    fn pixel_scale(&self) -> Option<f64> {
        self.scale.iter().find_map(|s| match s {
            ScaleValue::Pixels(x) => Some(*x),
            ScaleValue::Codes(_) => None,
        })
    }

    /// The description of the data at a path, or of `random:N`.
    pub(crate) fn spec(&self, path: &Path, global: &Global) -> DataSpec {
        let samples = self.samples;
        DataSpec {
            path: path.to_owned(),
            samples: samples.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            shuffle: self.shuffle,
            seed: global.seed,
            skip_bad: self.skip_bad,
            inputs: self.input.iter().cloned().collect(),
            image: ImageSpec {
                preset: self.preset,
                image_size: self.image_size,
                resize: self.resize,
                crop: self.crop,
                filter: self.filter,
                mean: self.mean.clone(),
                std: self.std.clone(),
                scale: self.pixel_scale(),
                layout: self.layout,
                channels: self.channels,
            },
            tokenizer: self.tokenizer.clone(),
            window: self.window.map(|n| n as usize),
            rate: self.rate,
        }
    }
}
