//! Data that fits a model: its samples, its batches, and what the user should know of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::DataType;

use super::batches::{Batch, Batches};
use super::error::DataError;
use super::fill::{Fill, Fills, listed, symbol_sizes};
use super::items::{ItemLayout, Items, try_all};
use super::layout::{Chunk, Layout};
use super::plan::{ItemPlan, Plan, RunPlan, Step};
use super::rows::ArrayItems;
use super::signature::{Input, Signature};
use super::source;

/// Samples for a model, on disk. Cloning is cheap; reading happens in [`DataSet::batches`] only.
#[derive(Debug, Clone)]
pub struct DataSet {
    inner: Arc<Inner>,
    order: Order,
}

#[derive(Debug)]
struct Inner {
    /// The inputs that are fed, and how those are that the data does not give.
    fed: Vec<Input>,
    fills: Vec<Option<Fill>>,
    store: Store,
    notes: Vec<String>,
    classes: Option<Classes>,
    /// The path that was opened.
    root: PathBuf,
    /// Files that were left out.
    skipped: usize,
}

/// Where the samples come from.
#[derive(Debug)]
pub(super) enum Store {
    /// Arrays, read from their beginning.
    Arrays(Vec<Run>),
    /// Samples that are made one by one.
    Items(Box<dyn Items>, ItemLayout),
}

/// Which samples are used, in which order.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// The first this many.
    First(usize),
    /// These.
    Chosen(Arc<[usize]>),
}

/// Samples that are made one by one, before they are matched with the rest of the signature.
pub(super) struct Made {
    pub(super) items: Box<dyn Items>,
    pub(super) layout: ItemLayout,
    /// The places in the signature of the inputs that a sample gives, in order.
    pub(super) given: Vec<usize>,
    pub(super) notes: Vec<String>,
    pub(super) classes: Option<Classes>,
    /// Files that were left out because they cannot be read.
    pub(super) skipped: usize,
}

/// What a data set knows beside its samples.
struct Rest {
    notes: Vec<String>,
    classes: Option<Classes>,
    root: PathBuf,
    skipped: usize,
}

/// A file that cannot be used, and why.
pub(super) type Unreadable = (PathBuf, String);

/// The class of each sample, where the data itself says it.
#[derive(Debug, Clone)]
pub(super) struct Classes {
    /// Where they come from.
    pub(super) path: Arc<Path>,
    /// One for each sample of the whole data.
    pub(super) ids: Vec<i64>,
}

/// Chunks that follow each other and have the same shape but for the number of samples.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) chunks: Vec<Chunk>,
    pub(super) samples: usize,
}

impl Run {
    pub(super) fn layout(&self) -> Layout {
        self.chunks[0].layout
    }
}

impl DataSet {
    /// Opens a file or folder of arrays and checks names, types, shapes and numbers of samples; values are checked
    /// when a batch is read. Images, texts, recordings and options are opened with [`DataSpec`](super::DataSpec).
    ///
    /// # Errors
    /// What does not fit, with the file and the array.
    pub fn open(path: &Path, signature: &Signature) -> Result<Self, DataError> {
        let fills = Fills::new(&BTreeMap::new(), signature)?;
        Self::arrays(path, signature, &fills)
    }

    /// As [`Self::open`], where some inputs are filled.
    pub(super) fn arrays(
        path: &Path,
        signature: &Signature,
        fills: &Fills,
    ) -> Result<Self, DataError> {
        let (found, mut notes) = source::find(path, &fills.relaxed(signature))?;
        let mask: Vec<bool> = match found.first() {
            Some(f) => f.arrays.iter().map(Option::is_some).collect(),
            None => return Err(DataError::EmptyFolder(path.to_owned())),
        };
        fills.check(signature, &mask, path)?;
        let given: Vec<&Input> = select(&signature.inputs, &mask).collect();
        let mut runs: Vec<Run> = Vec::new();
        for f in found {
            let differs = |(i, (a, m)): (usize, (&Option<_>, &bool))| {
                (a.is_some() != *m).then(|| signature.inputs[i].name.clone())
            };
            let mut presence = f.arrays.iter().zip(&mask).enumerate();
            if let Some(input) = presence.find_map(differs) {
                let path = f.path.to_path_buf();
                return Err(DataError::Uneven { path, input });
            }
            let chunk = Chunk::new(f, &given)?;
            let samples = chunk.samples;
            match runs.last_mut() {
                Some(run) if chunk.continues(&run.chunks[0]) => {
                    run.samples = run.samples.saturating_add(samples);
                    run.chunks.push(chunk);
                }
                _ => runs.push(Run {
                    chunks: vec![chunk],
                    samples,
                }),
            }
        }
        let samples = total(&runs);
        notes.extend(remarks(path, signature, &mask, fills, &runs));
        let rest = Rest {
            notes,
            classes: None,
            root: path.to_owned(),
            skipped: 0,
        };
        Self::build(signature, &mask, fills, Store::Arrays(runs), samples, rest)
    }

    /// Samples that are made one by one.
    pub(super) fn made(
        path: &Path,
        made: Made,
        signature: &Signature,
        fills: &Fills,
    ) -> Result<Self, DataError> {
        let places = 0..signature.inputs.len();
        let mask: Vec<bool> = places.map(|i| made.given.contains(&i)).collect();
        fills.check(signature, &mask, path)?;
        let missing =
            |(i, input): &(usize, &Input)| !mask[*i] && fills.0[*i].is_none() && !input.optional;
        if let Some((_, input)) = signature.inputs.iter().enumerate().find(missing) {
            let fed = made.given.iter().map(|&i| &signature.inputs[i]);
            return Err(DataError::Spec(format!(
                "{} feeds {}, but the model has the input `{}` ({input}) too: give it with --input {}=VALUE",
                path.display(),
                listed(fed),
                input.name,
                input.name
            )));
        }
        let samples = made.items.len();
        let mut notes = made.notes;
        notes.extend(fills.notes(signature, &mask));
        let store = Store::Items(made.items, made.layout);
        let rest = Rest {
            notes,
            classes: made.classes,
            root: path.to_owned(),
            skipped: made.skipped,
        };
        Self::build(signature, &mask, fills, store, samples, rest)
    }

    fn build(
        signature: &Signature,
        mask: &[bool],
        fills: &Fills,
        store: Store,
        samples: usize,
        rest: Rest,
    ) -> Result<Self, DataError> {
        let (mut fed, mut used) = (Vec::new(), Vec::new());
        for ((input, fill), given) in signature.inputs.iter().zip(&fills.0).zip(mask) {
            if *given {
                fed.push(input.clone());
                used.push(None);
            } else if let Some(fill) = fill {
                fed.push(input.clone());
                used.push(Some(fill.clone()));
            }
        }
        let data = Self {
            inner: Arc::new(Inner {
                fed,
                fills: used,
                store,
                notes: rest.notes,
                classes: rest.classes,
                root: rest.root,
                skipped: rest.skipped,
            }),
            order: Order::First(samples),
        };
        // A value that does not fit the shapes of the data is told before the work begins.
        if let Some(step) = data.plan(1).next() {
            data.step_shapes(&step)?;
        }
        Ok(data)
    }

    /// The same data without the samples after the first `samples`; at least one stays.
    pub fn limit(mut self, samples: usize) -> Self {
        let keep = self.len().min(samples.max(1));
        self.order = match self.order {
            Order::First(_) => Order::First(keep),
            Order::Chosen(c) => Order::Chosen(c[..keep].into()),
        };
        self
    }

    /// The samples at these places, in this order. Arrays are then read row by row; what is compressed is unpacked
    /// into a temporary file first.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn select(&self, places: &[usize]) -> Result<Self, DataError> {
        let chosen: Arc<[usize]> = places.iter().map(|&p| self.source_index(p)).collect();
        let order = Order::Chosen(chosen);
        let runs = match &self.inner.store {
            Store::Arrays(runs) => runs,
            Store::Items(..) => {
                let inner = Arc::clone(&self.inner);
                return Ok(Self { inner, order });
            }
        };
        let (items, layout) = ArrayItems::open(runs)?;
        let old = &self.inner;
        let inner = Arc::new(Inner {
            fed: old.fed.clone(),
            fills: old.fills.clone(),
            store: Store::Items(Box::new(items), layout),
            notes: old.notes.clone(),
            classes: old.classes.clone(),
            root: old.root.clone(),
            skipped: old.skipped,
        });
        Ok(Self { inner, order })
    }

    /// The places of the first `wanted` samples that can be read, and the files of those before them that cannot, with
    /// the reason.
    pub(super) fn good(&self, wanted: usize) -> Result<(Vec<usize>, Vec<Unreadable>), DataError> {
        const BLOCK: usize = 64;
        let Store::Items(items, _) = &self.inner.store else {
            return Ok(((0..self.len().min(wanted)).collect(), Vec::new()));
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let inputs = items.dims(self.source_index(0)).len();
        for start in (0..self.len()).step_by(BLOCK) {
            let places = start..self.len().min(start + BLOCK);
            let indices: Vec<usize> = places.clone().map(|p| self.source_index(p)).collect();
            for (place, read) in places.zip(try_all(&**items, &indices, inputs)) {
                if good.len() == wanted {
                    return Ok((good, bad));
                }
                match (read, self.file(place)) {
                    (None, _) => good.push(place),
                    (Some(e), Some(file)) => bad.push((file.to_owned(), e.to_string())),
                    (Some(e), None) => return Err(e),
                }
            }
        }
        Ok((good, bad))
    }

    /// The same data with more notes, and more files that were left out.
    pub(super) fn noted(self, notes: impl IntoIterator<Item = String>, skipped: usize) -> Self {
        let mut inner = match Arc::try_unwrap(self.inner) {
            Ok(inner) => inner,
            Err(inner) => {
                return Self {
                    inner,
                    order: self.order,
                };
            }
        };
        inner.notes.extend(notes);
        inner.skipped += skipped;
        Self {
            inner: Arc::new(inner),
            order: self.order,
        }
    }

    /// The number in the whole data of the sample at a place of the order in use.
    pub fn source_index(&self, place: usize) -> usize {
        match &self.order {
            Order::First(_) => place,
            Order::Chosen(c) => c[place],
        }
    }

    /// The number of samples of the whole data, used or not.
    pub fn source_len(&self) -> usize {
        match &self.inner.store {
            Store::Arrays(runs) => total(runs),
            Store::Items(items, _) => items.len(),
        }
    }

    /// For each sample in use the token after each of its tokens, where samples are windows of a text.
    pub(super) fn next_tokens(&self) -> Option<Result<Vec<Vec<i64>>, DataError>> {
        let Store::Items(items, _) = &self.inner.store else {
            return None;
        };
        let places = 0..self.len();
        places
            .map(|p| items.next_tokens(self.source_index(p)))
            .collect()
    }

    /// The path that was opened.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Files that were left out because they cannot be read.
    pub fn skipped(&self) -> usize {
        self.inner.skipped
    }

    /// The file that a sample of the whole data comes from.
    pub(super) fn source_file(&self, index: usize) -> Option<&Path> {
        match &self.inner.store {
            Store::Arrays(_) => None,
            Store::Items(items, _) => items.file(index),
        }
    }

    /// The file that a sample comes from, where each sample is one.
    pub fn file(&self, place: usize) -> Option<&Path> {
        self.source_file(self.source_index(place))
    }

    /// The classes that the data itself gives its samples, in the order in use, and where they come from.
    pub(super) fn classes(&self) -> Option<(Arc<Path>, Vec<i64>)> {
        let classes = self.inner.classes.as_ref()?;
        let ids = (0..self.len()).map(|p| classes.ids[self.source_index(p)]);
        Some((Arc::clone(&classes.path), ids.collect()))
    }

    /// The number of samples. A complete feed counts as one.
    pub fn len(&self) -> usize {
        match &self.order {
            Order::First(n) => *n,
            Order::Chosen(c) => c.len(),
        }
    }

    /// Never true: data without samples does not open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The arrays hold complete feeds: each sample is one run, and outputs have no axis of samples.
    pub fn holds_feeds(&self) -> bool {
        let feeds = |r: &Run| !matches!(r.layout(), Layout::Samples { .. });
        match &self.inner.store {
            Store::Arrays(runs) => runs.iter().any(feeds),
            Store::Items(_, layout) => *layout == ItemLayout::Feeds,
        }
    }

    /// The inputs that the tensors of a batch are for, in order: the signature's, without optional inputs that the
    /// data leaves out.
    pub fn fed(&self) -> &[Input] {
        &self.inner.fed
    }

    /// Reads the data from the start, at most `max_batch` samples at a time. A thread of its own reads ahead by a few
    /// batches; the iterator owns its files (and keeps arrays in Fortran order in memory) and ends after an error.
    pub fn batches(&self, max_batch: usize) -> Batches {
        Batches::new(self.clone(), self.plan(max_batch))
    }

    /// The number of batches that [`Self::batches`] yields.
    pub fn batch_count(&self, max_batch: usize) -> usize {
        self.plan(max_batch).count()
    }

    /// Name, type and shape of each fed input in the first batch, without reading it.
    pub fn peek_shapes(&self, max_batch: usize) -> Vec<(String, DataType, Vec<usize>)> {
        let first = self.plan(max_batch).next();
        let shapes = first.and_then(|s| self.step_shapes(&s).ok());
        let named = |(input, dims): (&Input, Vec<usize>)| (input.name.clone(), input.dtype, dims);
        let fed = self.inner.fed.iter();
        fed.zip(shapes.unwrap_or_default()).map(named).collect()
    }

    /// The different shapes that batches have, one entry a fed input, in order of appearance and without reading
    /// the data.
    pub fn all_shapes(&self, max_batch: usize) -> Vec<Vec<Vec<usize>>> {
        let mut all = Vec::new();
        for step in self.plan(max_batch) {
            let shapes = self.step_shapes(&step).unwrap_or_default();
            if !all.contains(&shapes) {
                all.push(shapes);
            }
        }
        all
    }

    /// Name, type and shape of each tensor of a batch.
    pub fn shapes_of(&self, batch: &Batch) -> Vec<(String, DataType, Vec<usize>)> {
        let size = |&d: &i64| usize::try_from(d).unwrap_or(0);
        let named = |(input, tensor): (&Input, &onnx_quant_ir::Tensor)| {
            let dims = tensor.dims().iter().map(size).collect();
            (input.name.clone(), input.dtype, dims)
        };
        self.inner
            .fed
            .iter()
            .zip(&batch.tensors)
            .map(named)
            .collect()
    }

    /// What the user should know about how the data is used, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.inner.notes.clone();
        let padded = |s: &Step| s.padded > 0;
        let mut short = self.plan(usize::MAX).filter(padded);
        if let Some(step) = short.next() {
            let size = step.samples + step.padded;
            notes.push(match short.count() {
                0 => format!(
                    "the model takes {size} samples at a time: the last batch repeats its last sample {} times to be full, and those outputs are dropped",
                    step.padded
                ),
                more => format!(
                    "the model takes {size} samples at a time: {} batches repeat their last sample to be full, and those outputs are dropped",
                    more + 1
                ),
            });
        }
        notes
    }

    /// The shape of each fed input in a batch.
    fn step_shapes(&self, step: &Step) -> Result<Vec<Vec<usize>>, DataError> {
        let (given, rows) = self.given_shapes(step);
        self.fed_shapes(given, rows)
    }

    /// The shapes of the inputs that the data gives, and the size of the sample axis where there is one.
    fn given_shapes(&self, step: &Step) -> (Vec<Vec<usize>>, Option<usize>) {
        let rows = step.samples + step.padded;
        match &self.inner.store {
            Store::Arrays(runs) => {
                let chunk = &runs[step.run].chunks[0];
                let inputs = 0..chunk.arrays.len();
                let dims = inputs.map(|i| chunk.batch_dims(i, rows)).collect();
                let counted = matches!(chunk.layout, Layout::Samples { .. });
                (dims, counted.then_some(rows))
            }
            Store::Items(items, layout) => {
                let index = self.source_index(step.first_sample);
                let mut dims = items.dims(index);
                let counted = matches!(layout, ItemLayout::Samples { .. });
                let shared = items.shared(index);
                for (i, dims) in dims.iter_mut().enumerate() {
                    if counted && !shared.get(i).copied().unwrap_or(false) {
                        dims.insert(0, rows);
                    }
                }
                (dims, counted.then_some(rows))
            }
        }
    }

    /// The shape of each fed input where those of the given inputs are known.
    pub(super) fn fed_shapes(
        &self,
        given: Vec<Vec<usize>>,
        rows: Option<usize>,
    ) -> Result<Vec<Vec<usize>>, DataError> {
        let Inner { fed, fills, .. } = &*self.inner;
        let is_given = |(i, f): (&'_ Input, &Option<Fill>)| f.is_none().then(|| i.name.clone());
        let names: Vec<String> = fed.iter().zip(fills).filter_map(is_given).collect();
        let inputs = fed.iter().filter(|i| names.contains(&i.name));
        let sizes = symbol_sizes(inputs.zip(given.iter().map(Vec::as_slice)));
        let mut given = given.iter().cloned();
        let pairs = fed.iter().zip(fills);
        pairs
            .map(|(input, fill)| match fill {
                Some(fill) => fill.dims(input, rows, &sizes),
                None => Ok(given.next().unwrap_or_default()),
            })
            .collect()
    }

    pub(super) fn fills(&self) -> &[Option<Fill>] {
        &self.inner.fills
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    fn plan(&self, max_batch: usize) -> Plan {
        match &self.inner.store {
            Store::Arrays(runs) => {
                let runs = runs.iter().map(|r| (r.layout(), r.samples));
                Plan::Runs(RunPlan::new(runs.collect(), max_batch, self.len()))
            }
            Store::Items(..) => Plan::Items(ItemPlan::new(self.clone(), max_batch)),
        }
    }
}

fn total(runs: &[Run]) -> usize {
    let samples = runs.iter().map(|r| r.samples);
    samples.fold(0, usize::saturating_add)
}

fn select<'a, T>(items: &'a [T], mask: &'a [bool]) -> impl Iterator<Item = &'a T> {
    items.iter().zip(mask).filter(|(_, m)| **m).map(|(i, _)| i)
}

fn remarks(
    path: &Path,
    signature: &Signature,
    mask: &[bool],
    fills: &Fills,
    runs: &[Run],
) -> Vec<String> {
    let mut notes: Vec<String> = fills.notes(signature, mask).into_iter().collect();
    let known: Vec<bool> = mask
        .iter()
        .zip(&fills.0)
        .map(|(m, f)| *m || f.is_some())
        .collect();
    let pairs = || signature.inputs.iter().zip(&known);
    // Old exporters list every weight as an input: defaults are worth a word only where the data feeds others.
    if pairs().any(|(input, given)| input.optional && *given) {
        for (input, _) in pairs().filter(|(_, given)| !**given) {
            notes.push(format!(
                "the input `{}` is not in the data and keeps the model's default",
                input.name
            ));
        }
    }
    if runs.iter().any(|r| r.layout() == Layout::Feeds) {
        notes.push(format!(
            "{}: the arrays have one axis more than the inputs: each index of it is fed as one complete run of the model",
            path.display()
        ));
    }
    let arrays = runs.iter().flat_map(|r| &r.chunks).flat_map(|c| &c.arrays);
    for array in arrays.filter(|a| a.is_fortran()) {
        notes.push(format!(
            "{} is in Fortran order and is read into memory as a whole; np.ascontiguousarray before saving avoids that",
            array.origin
        ));
    }
    notes
}
