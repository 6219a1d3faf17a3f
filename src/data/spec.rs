//! The description of a data set: where it lies, how it becomes tensors, which samples are used. One value for the
//! command line, the configuration file and build scripts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_quant_ir::Model;
use serde::{Deserialize, Serialize};

use super::dataset::{DataSet, Made};
use super::error::DataError;
use super::fill::{Fills, InputValue};
use super::image_spec::ImageSpec;
use super::random::{self, FreeSizes};
use super::signature::Signature;
use super::source::{self, extension};

/// What data is fed, and how it becomes tensors. Only `path` is required.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DataSpec {
    /// A file, a folder, or `random:N` for N random samples.
    pub path: PathBuf,
    /// At most this many samples are used; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Samples are used in random order, so that `samples` takes a random part.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shuffle: bool,
    /// Seed of the order and of random data.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u64,
    /// Files that cannot be read are left out and counted instead of being an error.
    #[serde(default, skip_serializing_if = "is_default")]
    pub skip_bad: bool,
    /// Values of inputs that the data does not give.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, InputValue>,
    /// Images: how they become tensors.
    #[serde(default, skip_serializing_if = "is_default")]
    pub image: ImageSpec,
    /// Text: the `tokenizer.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Text: tokens of a sample; audio: values of a sample; random data: size of axes that the model leaves free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Audio: samples a second that every file must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<P: Into<PathBuf>> From<P> for DataSpec {
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }
}

/// The kinds of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Random(usize),
    Arrays,
    Images,
    Audio,
    Text,
}

impl DataSpec {
    /// Opens the data for a model.
    ///
    /// # Errors
    /// What is wrong with the data or the options, or does not fit the model.
    pub fn open(&self, model: &Model) -> Result<DataSet, DataError> {
        let signature = Signature::of(model)?;
        let fills = Fills::new(&self.inputs, &signature)?;
        let kind = self.kind()?;
        let data = match kind {
            Kind::Arrays => DataSet::arrays(&self.path, &signature, &fills)?,
            _ => {
                let made = self.made(kind, model, &signature, &fills)?;
                DataSet::made(&self.path, made, &signature, &fills)?
            }
        };
        let data = data.noted(self.unused(kind), 0);
        self.chosen(data)
    }

    /// The path when it is a file or folder.
    pub fn file(&self) -> Option<&Path> {
        (!self.is_random()).then_some(self.path.as_path())
    }

    /// Whether the data is random: a dry run.
    pub fn is_random(&self) -> bool {
        self.path.to_string_lossy().starts_with("random:")
    }

    fn kind(&self) -> Result<Kind, DataError> {
        if let Some(count) = self.path.to_string_lossy().strip_prefix("random:") {
            return match count.parse() {
                Ok(n) if n > 0 => Ok(Kind::Random(n)),
                _ => Err(DataError::Spec(format!(
                    "`random:{count}`: give the number of random samples, as random:16"
                ))),
            };
        }
        let meta = std::fs::metadata(&self.path).map_err(|e| DataError::io(&self.path, e))?;
        if !meta.is_dir() {
            return file_kind(&self.path, self.tokenizer.is_some())
                .ok_or_else(|| DataError::UnknownKind(self.path.clone()));
        }
        let mut open = vec![self.path.clone()];
        let mut sounds = false;
        while let Some(folder) = open.pop() {
            for entry in source::list(&folder)? {
                if source::is_array(&entry) || source::is_test_data(&entry) {
                    return Ok(Kind::Arrays);
                }
                if entry.is_dir() {
                    open.push(entry);
                    continue;
                }
                match file_kind(&entry, false) {
                    Some(Kind::Images) => return Ok(Kind::Images),
                    Some(Kind::Audio) => sounds = true,
                    _ => {}
                }
            }
        }
        if sounds {
            return Ok(Kind::Audio);
        }
        Err(DataError::EmptyFolder(self.path.clone()))
    }

    fn made(
        &self,
        kind: Kind,
        model: &Model,
        signature: &Signature,
        fills: &Fills,
    ) -> Result<Made, DataError> {
        match kind {
            Kind::Random(samples) => {
                let free = FreeSizes {
                    image: self.image.image_size.map(|s| (s.height, s.width)),
                    window: self.window,
                };
                random::made(model, signature, fills, samples, self.seed, free)
            }
            #[cfg(feature = "images")]
            Kind::Images => super::image::made(self, model, signature, fills),
            #[cfg(feature = "audio")]
            Kind::Audio => super::audio::made(self, model, signature, fills),
            #[cfg(feature = "text")]
            Kind::Text => super::text::made(self, signature, fills),
            _ => Err(self.without_reader(kind)),
        }
    }

    fn without_reader(&self, kind: Kind) -> DataError {
        let (what, feature) = match kind {
            Kind::Images => ("images", "images"),
            Kind::Audio => ("recordings", "audio"),
            _ => ("text", "text"),
        };
        DataError::Spec(format!(
            "{}: this program was built without a reader of {what}; build it with the cargo feature `{feature}`",
            self.path.display()
        ))
    }

    /// A note where options are given that this kind of data has no use for.
    fn unused(&self, kind: Kind) -> Option<String> {
        let mut unused = Vec::new();
        let sized = self.image.image_size.is_some() && matches!(kind, Kind::Random(_));
        if kind != Kind::Images && self.image != ImageSpec::default() && !sized {
            unused.push("the options for images");
        }
        if kind != Kind::Text && self.tokenizer.is_some() {
            unused.push("--tokenizer");
        }
        if matches!(kind, Kind::Arrays | Kind::Images) && self.window.is_some() {
            unused.push("--window");
        }
        if kind != Kind::Audio && self.rate.is_some() {
            unused.push("--rate");
        }
        let what = match kind {
            Kind::Random(_) => "random data has",
            Kind::Arrays => "arrays have",
            Kind::Images => "images have",
            Kind::Audio => "recordings have",
            Kind::Text => "texts have",
        };
        (!unused.is_empty()).then(|| {
            format!(
                "{}: {what} no use for {}",
                self.path.display(),
                unused.join(" and ")
            )
        })
    }

    /// The samples that are used, in their order.
    fn chosen(&self, data: DataSet) -> Result<DataSet, DataError> {
        let all = data.len();
        let wanted = self.samples.unwrap_or(all);
        if wanted == 0 {
            return Err(DataError::Spec("--samples must be 1 or more".to_owned()));
        }
        let few = (self.samples.is_some() && all < wanted).then(|| {
            format!(
                "{}: {all} samples, fewer than the {wanted} of --samples",
                self.path.display()
            )
        });
        if !self.shuffle && !self.skip_bad {
            return Ok(data.noted(few, 0).limit(wanted));
        }
        let order = match self.shuffle {
            true => random::shuffled(all, self.seed),
            false => (0..all).collect(),
        };
        let mut notes: Vec<String> = few.into_iter().collect();
        if self.shuffle {
            notes.push(format!(
                "the samples are in random order (seed {})",
                self.seed
            ));
        }
        let mut skipped = 0;
        let order = match self.skip_bad {
            true => {
                let (good, bad) = data.select(&order)?.good(wanted)?;
                skipped = bad.len();
                if let Some((_, reason)) = bad.first() {
                    notes.push(format!(
                        "SKIPPED {} of {} files, the first: {reason}",
                        bad.len(),
                        bad.len() + good.len()
                    ));
                }
                good.into_iter().map(|place| order[place]).collect()
            }
            false => order[..wanted.min(all)].to_vec(),
        };
        if order.is_empty() {
            return Err(DataError::Spec(format!(
                "{}: not one of its {all} samples can be read",
                self.path.display()
            )));
        }
        data.noted(notes, skipped).select(&order)
    }
}

/// What a file is, by its name.
fn file_kind(path: &Path, tokenizer: bool) -> Option<Kind> {
    if source::is_array(path) {
        return Some(Kind::Arrays);
    }
    match extension(path).as_deref() {
        Some("jpg" | "jpeg" | "png" | "webp" | "bmp" | "gif") => Some(Kind::Images),
        Some("wav") => Some(Kind::Audio),
        Some("txt") => Some(Kind::Text),
        _ => tokenizer.then_some(Kind::Text),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_description_is_written_and_read() {
        let text = r#"{"path":"images","samples":500,"shuffle":true,"skip-bad":true,
            "inputs":{"sr":16000,"state":0.5,"mask":[[1,1],[0,1]],"flag":true,"x":"x.npy"},
            "image":{"preset":"imagenet","image-size":"224x320","resize":"shortest:256","mean":[0.5],"layout":"nhwc"},
            "window":64}"#;
        let spec: DataSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.inputs["sr"], InputValue::Int(16000));
        assert_eq!(spec.inputs["flag"], InputValue::Bool(true));
        assert_eq!(spec.inputs["x"], InputValue::File("x.npy".into()));
        let size = spec.image.image_size.unwrap();
        assert_eq!((size.height, size.width), (224, 320));
        let written = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<DataSpec>(&written).unwrap(), spec);
        let short = serde_json::to_string(&DataSpec::from("a.npz")).unwrap();
        assert_eq!(short, r#"{"path":"a.npz"}"#);
        for wrong in [
            r#"{"path":"a","sampels":1}"#,
            r#"{"path":"a","image":{"resize":"large"}}"#,
            r#"{"samples":1}"#,
        ] {
            assert!(serde_json::from_str::<DataSpec>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn random_data_is_no_file() {
        assert_eq!(DataSpec::from("random:8").file(), None);
        assert_eq!(DataSpec::from("a.npz").file(), Some(Path::new("a.npz")));
    }
}
