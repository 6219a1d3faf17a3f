//! Runs the trials of an analysis: in waves of batches whose kept values fit into memory, layers in parallel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use onnx_quant_ir::engine::{Engine, Session};
use onnx_quant_ir::{Model, Tensor};
use onnx_quant_numerics::format::Format;
use onnx_quant_numerics::metrics::Compare;
use rayon::prelude::*;

use super::analyze::{Analysis, Subject};
use super::cache::Cache;
use super::chunks::{Chunks, Feed, Values, request};
use super::layers::Site;
use super::loss::{Loss, LossKind, kind_of, values};
use super::sensitivity::{Accumulated, Interaction, Measured};
use super::sums::{Sums, Trial, from_bits, to_bits};
use super::variant;
use crate::calibrate::batch_size;
use crate::data::Batch;
use crate::error::Error;

/// An analysis under way.
pub(super) struct Measuring<'a> {
    pub(super) subject: &'a Subject<'a>,
    pub(super) analysis: &'a Analysis,
    pub(super) engine: &'a Arc<dyn Engine>,
    pub(super) sites: &'a [Site],
    pub(super) trials: &'a [Vec<Trial>],
}

/// What was found.
pub(super) struct Found {
    pub(super) kind: LossKind,
    pub(super) samples: usize,
    pub(super) layers: Vec<FoundLayer>,
    pub(super) accumulated: Vec<Accumulated>,
    pub(super) interactions: Vec<Interaction>,
}

/// What was found of a layer.
#[derive(Default)]
pub(super) struct FoundLayer {
    /// Whether it is left of the model where the shapes of the inputs are known.
    pub(super) there: bool,
    pub(super) macs: u64,
    pub(super) float_bytes: u64,
    pub(super) float_micros: Option<f64>,
    pub(super) formats: Vec<Measured>,
}

/// A batch that was run, with what passes between the pieces.
struct Ran {
    batch: Batch,
    shape: usize,
    values: Values,
    outputs: Vec<Tensor>,
}

/// Losses below this share of the sum of all that could be chosen do not decide anything.
const SMALL: f64 = 0.1;

impl Measuring<'_> {
    /// Runs all of it.
    pub(super) fn run(&self, say: &mut dyn FnMut(String)) -> Result<Found, Error> {
        let data = self.subject.data.clone().limit(self.analysis.samples);
        let cache = Cache::open(
            self.analysis.output.as_deref(),
            &self.key(),
            self.analysis.resume,
        )?;
        if self.analysis.resume {
            say(format!(
                "resume      {} tasks were finished before",
                cache.len()
            ));
        }
        let mut size = batch_size(data.len());
        let mut cut = Cut {
            measuring: self,
            shapes: Vec::new(),
            chunks: Vec::new(),
        };
        let mut batches = data.batches(size);
        let Some(first) = batches.next() else {
            return Err(Error::usage("the data holds no samples"));
        };
        let mut first = cut.run(first?)?;
        while first.values.bytes() > self.analysis.memory && size > 1 {
            size = (size / 2).max(1);
            batches = data.batches(size);
            match batches.next() {
                Some(b) => first = cut.run(b?)?,
                None => break,
            }
        }
        if first.values.bytes() > self.analysis.memory {
            say(format!(
                "memory      the values of one sample take {} MB, more than --memory",
                first.values.bytes() >> 20
            ));
        }
        let kind = self
            .analysis
            .loss
            .unwrap_or_else(|| kind_of(&first.outputs, self.subject.labels.is_some()));
        if kind == LossKind::Task && self.subject.labels.is_none() {
            return Err(Error::usage(
                "the loss `task` is that of top-1 accuracy: give --labels of the evaluation data",
            ));
        }
        let mut sums: Vec<Vec<Sums>> = self
            .trials
            .iter()
            .map(|t| vec![Sums::default(); t.len()])
            .collect();
        let everything: Vec<Vec<bool>> = self.trials.iter().map(|t| vec![true; t.len()]).collect();
        let wave = [first];
        self.wave((0, &cache), &cut, &wave, &everything, kind, &mut sums)?;
        let open = self.open(&sums, kind);
        let count = |o: &[Vec<bool>]| o.iter().flatten().filter(|x| **x).count();
        say(format!(
            "analyse     {} layers, {} trials on {} samples, {} of them on {}",
            self.sites.len(),
            count(&everything),
            wave[0].batch.samples,
            count(&open),
            data.len()
        ));
        let first_sums = sums.clone();
        let mut stage = 1;
        let mut next: Vec<Ran> = Vec::new();
        let mut held = wave[0].values.bytes();
        for batch in batches {
            let ran = cut.run(batch?)?;
            let bytes = ran.values.bytes();
            if !next.is_empty() && held + bytes > self.analysis.memory {
                self.wave((stage, &cache), &cut, &next, &open, kind, &mut sums)?;
                next.clear();
                held = wave[0].values.bytes();
                stage += 1;
            }
            held += bytes;
            next.push(ran);
        }
        if !next.is_empty() {
            self.wave((stage, &cache), &cut, &next, &open, kind, &mut sums)?;
        }
        drop(next);
        let mut found = Found {
            kind,
            samples: data.len(),
            layers: Vec::new(),
            accumulated: self.accumulated(&cut, &wave[0])?,
            interactions: self.interactions(&cut, &wave[0], kind, &first_sums)?,
        };
        for (index, sums) in sums.iter().enumerate() {
            found
                .layers
                .push(self.layer(&cut, &wave[0], index, sums, kind)?);
        }
        cache.finish();
        Ok(found)
    }

    /// Samples that are looked at.
    fn samples(&self) -> usize {
        self.analysis.samples.min(self.subject.data.len())
    }

    /// What the cached results belong to.
    fn key(&self) -> String {
        let a = self.analysis;
        format!(
            "{} {:?} {:?} {:?} {:?} {} {:?} {} {:?} {:?}",
            self.subject.digests.0,
            self.subject.digests.1,
            a.weights,
            a.activations,
            a.settings,
            a.samples,
            a.loss,
            a.thorough,
            a.prefilter,
            a.memory
        )
    }

    /// Runs the open trials of all layers on some batches.
    fn wave(
        &self,
        (stage, cache): (usize, &Cache),
        cut: &Cut<'_>,
        ran: &[Ran],
        open: &[Vec<bool>],
        kind: LossKind,
        sums: &mut [Vec<Sums>],
    ) -> Result<(), Error> {
        let bar = crate::progress::bar("analyse", sums.len());
        let parts = (0..sums.len())
            .into_par_iter()
            .map(|layer| {
                let known = cache
                    .get((stage, layer))
                    .and_then(|b| from_bits(b, self.trials[layer].len()));
                let part = match known {
                    // What is possible is known without running anything.
                    Some(part) => part,
                    None => {
                        let part = self.trials(cut, ran, layer, &open[layer], kind)?;
                        if part.iter().all(|s| s.refused.is_none()) {
                            cache.put((stage, layer), part.iter().flat_map(to_bits).collect());
                        }
                        part
                    }
                };
                bar.inc(1);
                Ok(part)
            })
            .collect::<Result<Vec<Vec<Sums>>, Error>>()?;
        bar.finish_and_clear();
        for (mine, theirs) in sums.iter_mut().flatten().zip(parts.into_iter().flatten()) {
            mine.loss.merge(&theirs.loss);
            mine.local.merge(&theirs.local);
            mine.errors.merge(&theirs.errors);
            mine.refused = mine.refused.take().or(theirs.refused);
            mine.bytes = mine.bytes.max(theirs.bytes);
        }
        Ok(())
    }

    /// Runs the open trials of one layer.
    fn trials(
        &self,
        cut: &Cut<'_>,
        ran: &[Ran],
        layer: usize,
        open: &[bool],
        kind: LossKind,
    ) -> Result<Vec<Sums>, Error> {
        let mut all = vec![Sums::default(); open.len()];
        for ((trial, sums), _) in self.trials[layer]
            .iter()
            .zip(&mut all)
            .zip(open)
            .filter(|(_, o)| **o)
        {
            let Some(first) = ran.first() else { break };
            let Some(piece) = cut.chunks[first.shape].layers().remove(&layer) else {
                sums.refused = Some("the layer is decided by the shapes of the inputs".to_owned());
                continue;
            };
            let settings = &self.analysis.settings;
            match variant::make(piece.model, settings, trial.weights, trial.input()) {
                Err(reason) => sums.refused = Some(reason),
                Ok(made) => {
                    sums.bytes = made.bytes;
                    self.trial(cut, ran, layer, &made.model, kind, sums)?;
                }
            }
        }
        Ok(all)
    }

    /// Runs one trial on the batches.
    fn trial(
        &self,
        cut: &Cut<'_>,
        ran: &[Ran],
        layer: usize,
        model: &Model,
        kind: LossKind,
        sums: &mut Sums,
    ) -> Result<(), Error> {
        let mut sessions: BTreeMap<usize, Arc<dyn Session>> = BTreeMap::new();
        for r in ran {
            let chunks = &cut.chunks[r.shape];
            let Some(piece) = chunks.layers().remove(&layer) else {
                continue;
            };
            let inputs = chunks.inputs_of(piece.at, &r.values);
            let session = match sessions.get(&r.shape) {
                Some(s) => Arc::clone(s),
                None => {
                    let session = self.engine.prepare(model, &request(model, &inputs))?;
                    Arc::clone(sessions.entry(r.shape).or_insert(session))
                }
            };
            let own = session.run(&inputs, None)?;
            let clean = chunks.outputs_of(piece.at, &r.values);
            let local = LossKind::Local;
            sums.local.add(local, (&clean, &own), &r.batch, None)?;
            if let (Some(least), Some(have)) = (self.analysis.prefilter, sums.local.sqnr_db())
                && have < least
            {
                sums.refused = Some(format!(
                    "left out by --prefilter: {have:.1} dB at its own output"
                ));
                return Ok(());
            }
            if kind == LossKind::Local {
                continue;
            }
            let mut own = Some(own);
            let mut replaced =
                |l: usize, _: &[Tensor]| (l == layer).then(|| own.take().map(Ok)).flatten();
            let outputs = chunks.rerun(&r.values, piece.at, &mut replaced)?;
            let both = (r.outputs.as_slice(), outputs.as_slice());
            sums.loss.add(kind, both, &r.batch, self.subject.labels)?;
            sums.errors.add(kind, both, &r.batch, self.samples())?;
            // Later batches would say the same of a format that leaves nothing of the signal.
            if !self.analysis.thorough && sums.loss.value(kind) > 4.0 * kind.hopeless() {
                break;
            }
        }
        Ok(())
    }

    /// The trials that the other samples are worth: not the hopeless, and not those of least loss that together would
    /// be but a small share of what the worst choice loses.
    fn open(&self, sums: &[Vec<Sums>], kind: LossKind) -> Vec<Vec<bool>> {
        let mut all: Vec<(f64, usize, usize)> = Vec::new();
        for (layer, sums) in sums.iter().enumerate() {
            for (trial, s) in sums.iter().enumerate() {
                let loss = s.value(kind);
                if s.refused.is_none() && (self.analysis.thorough || loss <= kind.hopeless()) {
                    all.push((loss, layer, trial));
                }
            }
        }
        let mut open: Vec<Vec<bool>> = sums.iter().map(|s| vec![false; s.len()]).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let total: f64 = all.iter().map(|(l, _, _)| l).sum();
        let mut below = 0.0;
        for (loss, layer, trial) in all {
            below += loss;
            open[layer][trial] = self.analysis.thorough || below > SMALL * total;
        }
        open
    }

    /// The row of a layer.
    fn layer(
        &self,
        cut: &Cut<'_>,
        first: &Ran,
        index: usize,
        sums: &[Sums],
        kind: LossKind,
    ) -> Result<FoundLayer, Error> {
        let chunks = &cut.chunks[first.shape];
        let mut found = FoundLayer::default();
        let piece = chunks.layers().remove(&index);
        if let Some(piece) = &piece {
            found.there = true;
            let outputs = chunks.outputs_of(piece.at, &first.values);
            let values = outputs
                .first()
                .and_then(|t| t.element_count().ok())
                .unwrap_or(0) as u64;
            found.macs = values * self.sites[index].fan_in / first.batch.samples.max(1) as u64;
            found.float_bytes = variant::stored(piece.model);
            if self.analysis.latency {
                found.float_micros = Some(self.time(chunks, first, piece.at, piece.model)?);
            }
        }
        for (trial, s) in self.trials[index].iter().zip(sums) {
            let (weights, activations) = trial.texts();
            let possible = s.refused.is_none();
            let loss = s.value(kind);
            let given_up = possible && loss > kind.hopeless();
            let mut micros = None;
            if let (true, true, Some(piece)) = (self.analysis.latency, possible, &piece) {
                let made = variant::make(
                    piece.model,
                    &self.analysis.settings,
                    trial.weights,
                    trial.input(),
                );
                if let Ok(made) = made {
                    micros = Some(self.time(chunks, first, piece.at, &made.model)?);
                }
            }
            found.formats.push(Measured {
                weights,
                activations,
                loss: possible.then_some(loss),
                sqnr_db: s.loss.sqnr_db().filter(|_| possible),
                local_sqnr_db: s.local.sqnr_db().filter(|_| possible),
                drop: s.loss.drop().filter(|_| possible),
                direction: s.errors.direction().filter(|_| possible),
                samples: s.loss.samples.max(s.local.samples),
                bytes: s.bytes,
                bits: trial.bits(),
                micros,
                remark: match (&s.refused, given_up) {
                    (Some(reason), _) => Some(reason.clone()),
                    (None, true) => {
                        Some("given up: the output carries less than it errs".to_owned())
                    }
                    _ => None,
                },
            });
        }
        Ok(found)
    }

    /// The least time of several runs of a layer alone, for one sample, in microseconds.
    fn time(&self, chunks: &Chunks, first: &Ran, at: usize, model: &Model) -> Result<f64, Error> {
        let inputs = chunks.inputs_of(at, &first.values);
        let session = self.engine.prepare(model, &request(model, &inputs))?;
        let mut least = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            session.run(&inputs, None)?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        Ok(least * 1e6 / first.batch.samples.max(1) as f64)
    }

    /// All layers quantized at once, for each format: the error at each layer's output.
    fn accumulated(&self, cut: &Cut<'_>, first: &Ran) -> Result<Vec<Accumulated>, Error> {
        let chunks = &cut.chunks[first.shape];
        let inputs: Vec<Option<Format>> = match self.analysis.activations.first() {
            Some(&a) => vec![Some(a)],
            None => vec![None],
        };
        let uniform: Vec<(Format, Option<Format>)> = self
            .analysis
            .weights
            .iter()
            .flat_map(|&w| inputs.iter().map(move |&a| (w, a)))
            .collect();
        let parts = uniform
            .par_iter()
            .map(|&(weights, input)| self.line(chunks, first, weights, input))
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// One line of errors: all layers with these formats, or as near as each can.
    fn line(
        &self,
        chunks: &Chunks,
        first: &Ran,
        weights: Format,
        input: Option<Format>,
    ) -> Result<Vec<Accumulated>, Error> {
        let pieces = chunks.layers();
        let format = super::sensitivity::name(
            Some(&weights.to_string()),
            input.map(|f| f.to_string()).as_deref(),
        );
        let mut line: Vec<Accumulated> = Vec::new();
        let mut replaced = |layer: usize, inputs: &[Tensor]| {
            let piece = pieces.get(&layer)?;
            let trials = self.trials[layer]
                .iter()
                .filter(|t| t.weights == Some(weights));
            let of = |wanted: Option<Format>| {
                let mut trials = trials.clone();
                let trial = trials.find(|t| t.input.map(|(f, _)| f) == wanted)?;
                let settings = &self.analysis.settings;
                variant::make(piece.model, settings, trial.weights, trial.input()).ok()
            };
            let made = of(input).or_else(|| of(None))?;
            let mut run = || -> Result<Vec<Tensor>, Error> {
                let session = self
                    .engine
                    .prepare(&made.model, &request(&made.model, inputs))?;
                let outputs = session.run(inputs, None)?;
                let clean = chunks.outputs_of(piece.at, &first.values);
                let mut compare = Compare::default();
                if let (Some(a), Some(b)) = (clean.first(), outputs.first()) {
                    let _ = compare.add(&values(a, &first.batch)?, &values(b, &first.batch)?);
                }
                let db = compare.sqnr_db();
                line.push(Accumulated {
                    layer: self.sites[layer].key.clone(),
                    format: format.clone(),
                    sqnr_db: db.is_finite().then_some(db),
                });
                Ok(outputs)
            };
            Some(run())
        };
        let start = pieces.values().map(|p| p.at).min().unwrap_or(0);
        chunks.rerun(&first.values, start, &mut replaced)?;
        Ok(line)
    }

    /// Neighbours quantized together, in the format of fewest bits that both bear.
    fn interactions(
        &self,
        cut: &Cut<'_>,
        first: &Ran,
        kind: LossKind,
        sums: &[Vec<Sums>],
    ) -> Result<Vec<Interaction>, Error> {
        if kind == LossKind::Local {
            return Ok(Vec::new());
        }
        let chunks = &cut.chunks[first.shape];
        let pieces = chunks.layers();
        let pairs = chunks.neighbours();
        let found = pairs
            .par_iter()
            .map(|&(a, b)| {
                let of = |layer: usize, i: usize| (&self.trials[layer][i], &sums[layer][i]);
                let both = (0..self.trials[a].len().min(self.trials[b].len()))
                    .filter(|&i| self.trials[a][i].weights == self.trials[b][i].weights)
                    .filter(|&i| {
                        [a, b].iter().all(|&l| {
                            let (t, s) = of(l, i);
                            t.weights.is_some()
                                && s.refused.is_none()
                                && s.value(kind) <= kind.hopeless()
                        })
                    })
                    .min_by_key(|&i| (self.trials[a][i].bits(), i));
                let Some(i) = both else { return Ok(None) };
                let mut replaced = |layer: usize, inputs: &[Tensor]| {
                    let piece = pieces.get(&layer).filter(|_| layer == a || layer == b)?;
                    let trial = &self.trials[layer][i];
                    let settings = &self.analysis.settings;
                    let made =
                        variant::make(piece.model, settings, trial.weights, trial.input()).ok()?;
                    let session = self
                        .engine
                        .prepare(&made.model, &request(&made.model, inputs));
                    Some(
                        session
                            .and_then(|s| s.run(inputs, None))
                            .map_err(Error::from),
                    )
                };
                let outputs = chunks.rerun(&first.values, pieces[&a].at, &mut replaced)?;
                let mut loss = Loss::default();
                loss.add(kind, (&first.outputs, &outputs), &first.batch, None)?;
                let loss = loss.value(kind);
                let alone = sums[a][i].value(kind) + sums[b][i].value(kind);
                let (w, x) = self.trials[a][i].texts();
                Ok(Some(Interaction {
                    first: self.sites[a].key.clone(),
                    second: self.sites[b].key.clone(),
                    format: super::sensitivity::name(w.as_deref(), x.as_deref()),
                    loss,
                    excess: loss - alone,
                }))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// The model in pieces, for each shape of its inputs.
struct Cut<'a> {
    measuring: &'a Measuring<'a>,
    shapes: Vec<Feed>,
    chunks: Vec<Chunks>,
}

impl Cut<'_> {
    fn run(&mut self, batch: Batch) -> Result<Ran, Error> {
        let m = self.measuring;
        let feed = m.subject.data.shapes_of(&batch);
        let shape = match self.shapes.iter().position(|s| *s == feed) {
            Some(at) => at,
            None => {
                let keys: Vec<String> = m.sites.iter().map(|s| s.key.clone()).collect();
                self.chunks
                    .push(Chunks::new(m.engine, m.subject.model, &feed, &keys)?);
                self.shapes.push(feed.clone());
                self.shapes.len() - 1
            }
        };
        let values = self.chunks[shape].forward(&feed, &batch.tensors)?;
        let outputs = self.chunks[shape].outputs(&values);
        Ok(Ran {
            batch,
            shape,
            values,
            outputs,
        })
    }
}
