//! The options that say how data becomes tensors and which samples are used: the same for every command that takes
//! data.

use std::path::{Path, PathBuf};

use clap::{Args, FromArgMatches, ValueEnum};
use onnx_quant::config::file::{ConfigFile, Value};
use onnx_quant::config::merge::{self, argument, configurable};
use onnx_quant::data::{
    Channels, Crop, DataSpec, Filter, ImageLayout, ImageSize, ImageSpec, InputValue, Preset,
    Resize, parse_scale,
};

use super::Global;
use super::storage::ScaleWord;

/// The options of data. [`DataArgs::spec`] joins them with a path, or with the data set of that name.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    #[command(flatten)]
    options: Options,
    /// A data set with options of its own, as { name = "val", path = "val/", preset = "imagenet" }: --calib val names it (repeatable)
    #[arg(long, value_name = "SET", value_parser = DataSetArg::parse)]
    dataset: Vec<DataSetArg>,
}

/// How data becomes tensors, and which samples are used.
#[derive(Debug, Clone, clap::Args)]
struct Options {
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
    ///
    /// # Errors
    /// Two factors, or two words.
    pub(crate) fn scale_word(&self) -> anyhow::Result<Option<ScaleWord>> {
        self.options.scale_word()
    }

    /// The options for a command that quantizes nothing.
    ///
    /// # Errors
    /// A `--scale` that is about codes, or two factors.
    pub(crate) fn only_data(&self) -> anyhow::Result<&Self> {
        self.options.only_data()?;
        Ok(self)
    }

    /// The description of the data at a path, of a data set by its name, or of `random:N`. A data set has its own options
    /// alone, but for `--samples`, which counts for it too.
    pub(crate) fn spec(&self, path: &Path, global: &Global) -> DataSpec {
        let Some(set) = self.named(path) else {
            return self.options.spec(path, global);
        };
        let mut spec = set.options.spec(&set.path, global);
        spec.samples = count(self.options.samples).or(spec.samples);
        spec
    }

    /// The same for evaluation data, whose number of samples is an option of its own.
    pub(crate) fn evaluation(
        &self,
        path: &Path,
        samples: Option<u64>,
        global: &Global,
    ) -> DataSpec {
        let own = self.named(path).and_then(|set| set.options.samples);
        DataSpec {
            samples: count(samples.or(own)),
            ..self.spec(path, global)
        }
    }

    /// The labels that are given, or those of the data set that is evaluated.
    pub(crate) fn labels(
        &self,
        given: Option<&PathBuf>,
        evaluated: Option<&PathBuf>,
    ) -> Option<PathBuf> {
        let of_set = || evaluated.and_then(|e| self.named(e)?.labels.as_ref());
        given.or_else(of_set).cloned()
    }

    fn named(&self, path: &Path) -> Option<&DataSetArg> {
        self.dataset.iter().rfind(|d| Path::new(&d.name) == path)
    }
}

impl Options {
    fn scale_word(&self) -> anyhow::Result<Option<ScaleWord>> {
        let is_word = |s: &&ScaleValue| matches!(s, ScaleValue::Codes(_));
        let words = self.scale.iter().filter(is_word).count();
        if words > 1 || self.scale.len() - words > 1 {
            anyhow::bail!(
                "--scale was given twice: one factor of pixels and one of float or pow2 are enough"
            );
        }
        Ok(self.scale.iter().find_map(|s| match s {
            ScaleValue::Codes(word) => Some(*word),
            ScaleValue::Pixels(_) => None,
        }))
    }

    fn only_data(&self) -> anyhow::Result<()> {
        if self.scale_word()?.is_some() {
            anyhow::bail!(
                "--scale: float and pow2 are about the scales of codes and belong to `quantize`; here give a factor of pixels, as 1/255"
            );
        }
        Ok(())
    }

    fn pixel_scale(&self) -> Option<f64> {
        self.scale.iter().find_map(|s| match s {
            ScaleValue::Pixels(x) => Some(*x),
            ScaleValue::Codes(_) => None,
        })
    }

    fn spec(&self, path: &Path, global: &Global) -> DataSpec {
        DataSpec {
            path: path.to_owned(),
            samples: count(self.samples),
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

fn count(samples: Option<u64>) -> Option<usize> {
    samples.map(|n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// A data set of the configuration: `[dataset.NAME]`.
#[derive(Debug, Clone)]
struct DataSetArg {
    name: String,
    path: PathBuf,
    labels: Option<PathBuf>,
    options: Options,
}

impl DataSetArg {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |e: String| format!("`{text}` is no data set: {e}");
        let file = ConfigFile::parse(Path::new("set"), &format!("set = {text}"))
            .map_err(|e| wrong(e.to_string()))?;
        let Some(Value::Table(entries)) = file.entries.first().map(|e| &e.value) else {
            return Err(wrong(
                "write { name = \"NAME\", path = \"DATA\" }".to_owned(),
            ));
        };
        let mut command = Options::augment_args(clap::Command::new("dataset").no_binary_name(true));
        command.build();
        let (mut name, mut path, mut labels, mut args) = (None, None, None, Vec::new());
        for entry in entries {
            let target = match entry.key.as_str() {
                "name" => &mut name,
                "path" => &mut path,
                "labels" => &mut labels,
                key => {
                    let arg = configurable(&command).find(|a| merge::key(a) == key);
                    let arg = arg.ok_or_else(|| wrong(unknown(&command, key)))?;
                    let found = argument(&file, arg, entry).map_err(|e| wrong(e.to_string()))?;
                    args.extend(found);
                    continue;
                }
            };
            match &entry.value {
                Value::Text(s) => *target = Some(s.clone()),
                other => return Err(wrong(format!("`{}` cannot be {}", entry.key, other.kind()))),
            }
        }
        let matches = command.try_get_matches_from(args);
        let options = matches.and_then(|m| Options::from_arg_matches(&m));
        let options = options.map_err(|e| {
            let said = e.to_string();
            let first = said.lines().next().unwrap_or_default();
            wrong(first.trim_start_matches("error: ").to_owned())
        })?;
        options.only_data().map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            name: name.ok_or_else(|| wrong("`name` is missing".to_owned()))?,
            path: path
                .ok_or_else(|| wrong("`path` is missing".to_owned()))?
                .into(),
            labels: labels.map(PathBuf::from),
            options,
        })
    }
}

fn unknown(command: &clap::Command, key: &str) -> String {
    let names = ["path", "labels"].map(str::to_owned);
    let names = names
        .into_iter()
        .chain(configurable(command).map(merge::key));
    let near =
        names.max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
    format!(
        "a data set has no key `{key}`; did you mean `{}`?",
        near.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn data_sets_are_read_from_toml() {
        let set = DataSetArg::parse(
            "{ name = \"val\", path = \"images\", labels = \"l.csv\", mean = [0.5, 0.5, 0.5], samples = 8, shuffle = true }",
        )
        .unwrap();
        assert_eq!(
            (set.name.as_str(), set.path.as_path()),
            ("val", Path::new("images"))
        );
        assert_eq!(set.labels.as_deref(), Some(Path::new("l.csv")));
        assert_eq!(set.options.mean, Some(vec![0.5; 3]));
        assert_eq!((set.options.samples, set.options.shuffle), (Some(8), true));
        for (bad, words) in [
            ("val", "is no data set"),
            ("{ path = \"a\" }", "`name` is missing"),
            ("{ name = \"a\" }", "`path` is missing"),
            ("{ name = \"a\", path = 1 }", "`path` cannot be a number"),
            (
                "{ name = \"a\", path = \"b\", sampels = 3 }",
                "did you mean `samples`?",
            ),
            ("{ name = \"a\", path = \"b\", samples = 0 }", "samples"),
        ] {
            let error = DataSetArg::parse(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
