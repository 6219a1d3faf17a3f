//! Walks along the graph, layer by layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::pass::PassContext;
use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Scheme;
use onnx_quant_numerics::optimize::grid::{Grid, Levels};
use onnx_quant_passes::codebook_weights::Importance;
use onnx_quant_passes::normals::ChannelNormals;
use onnx_quant_passes::overrides::{BiasCorrections, WeightOverride, WeightOverrides};
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::quantize_weights;
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::{correct_bias, infer};

use super::Options;
use super::blocks::{self, Member};
use super::capture::{self, Samples, Side};
use super::flow::Flow;
use super::layer::{self, Chosen, Layer, Ties};
use super::methods::Method;
use super::notes::Notes;
use super::padding::Padding;
use super::store::Budget;
use super::submodel::Cuts;
use super::tasks::{Task, grid, label, tasks};
use crate::data::DataSet;
use crate::error::Error;
use crate::pipeline::{Run, Watch};
use crate::progress;

/// The passes that give the model its form in which layers are judged: activations quantized, weights in float.
const PREFIX: &[&str] = &["split_shared_weights", "insert_qdq", "share_qdq_parameters"];

/// What was chosen for the whole model.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Weights.
    pub overrides: WeightOverrides,
    /// Biases.
    pub corrections: BiasCorrections,
    /// Steps of activations, by the key of the value.
    pub scales: BTreeMap<String, f32>,
    /// Blocks that were learned as a whole.
    pub blocks: usize,
    /// Layers that were looked at, and those whose weights or bias were changed.
    pub layers: (usize, usize),
    /// What the user should know.
    pub notes: Vec<String>,
    /// The same of single layers.
    said: Notes,
    /// Layers that no method applies to, with the reason.
    pub skips: Vec<(String, String)>,
}

impl Outcome {
    /// Gives what was chosen to the passes that store it; returns what is to be said.
    pub(crate) fn store(&self, cx: &mut PassContext) -> Vec<String> {
        if let Some(plan) = cx.get_mut::<PrecisionPlan>() {
            for (key, &scale) in &self.scales {
                let activation = plan.activations.get_mut(key);
                if let Some(params) = activation.and_then(|a| a.params.as_mut()) {
                    params.scale = scale;
                }
            }
        }
        cx.insert(self.overrides.clone());
        cx.insert(self.corrections.clone());
        let mut said = self.said.clone();
        for (subject, why) in &self.skips {
            said.say("left as it is:", subject, &format!(": {why}"));
        }
        self.notes.iter().cloned().chain(said.lines()).collect()
    }
}

/// What is known beside the model.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Calibration data.
    pub data: Option<&'a DataSet>,
    /// What BatchNormalization says of channels.
    pub normals: &'a ChannelNormals,
    /// How much the values of weights count in codebooks.
    pub importance: &'a Importance,
}

/// Chooses weights and biases of a planned model on calibration data; without any, scales by the weights alone and
/// biases by what BatchNormalization says of the channels.
///
/// # Errors
/// A model that cannot be run, or data that does not fit.
pub fn optimize(
    model: &Model,
    plan: &PrecisionPlan,
    settings: &QuantSettings,
    known: Known<'_>,
    engine: &Arc<dyn Engine>,
    options: &Options,
) -> Result<Outcome, Error> {
    let mut quantized = model.clone();
    let mut run = Run::new(Watch::default())?;
    run.cx.insert(plan.clone());
    run.cx.insert(settings.clone());
    run.passes(PREFIX, &mut quantized)?;
    let plan = run.cx.take::<PrecisionPlan>().unwrap_or_default();
    let mut outcome = Outcome::default();
    let tasks = tasks(model, &quantized, &plan, &mut outcome.skips);
    let nodes: BTreeSet<NodeId> = tasks
        .iter()
        .flat_map(|t| t.units.iter().map(|(u, _)| u.node))
        .collect();
    let Known {
        data,
        normals,
        importance,
    } = known;
    let Some(data) = data else {
        for task in &tasks {
            match choose(&quantized, task, (settings, importance), None, options) {
                Ok((mut chosen, entries)) => {
                    outcome.layers.0 += 1;
                    if options.methods.has(Method::BiasCorrection) {
                        match analytic_correction(&quantized, task, &chosen.values, normals) {
                            Ok(delta) => {
                                chosen.delta = delta;
                                chosen.kept.push(Method::BiasCorrection);
                            }
                            Err(why) => {
                                let (subject, why) = (label(model, task), format!(": {why}"));
                                outcome.said.say("no bias correction for", &subject, &why);
                            }
                        }
                    }
                    record(&mut outcome, &mut quantized, task, &chosen, &entries);
                }
                Err(why) => outcome.skips.push((label(model, task), why)),
            }
        }
        return Ok(outcome);
    };
    round_others(&mut quantized, &plan, &tasks, (settings, importance));
    let kept = Budget::new(options.memory / 2);
    let mut walk = Walk {
        model,
        quantized,
        tasks: &tasks,
        settings: (settings, importance),
        options,
        data,
        flows: [0; 2].map(|_| Flow::new(engine, data, &kept)),
        budget: Budget::new(options.memory / 2),
        padding: Padding::of(data)?,
        cuts: Cuts::new(model, &nodes),
        at: 0,
        members: Vec::new(),
        gains: Vec::new(),
        outcome,
    };
    let bar = progress::bar("optimize", tasks.len());
    for index in 0..tasks.len() {
        walk.layer(index)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let Walk {
        mut outcome,
        gains,
        padding,
        ..
    } = walk;
    outcome.notes.extend(padding.note());
    summarize(&mut outcome, &gains);
    Ok(outcome)
}

/// Rounds the weights that no method works on, embedding tables above all: the layers behind them then make up for that.
fn round_others(
    quantized: &mut Model,
    plan: &PrecisionPlan,
    tasks: &[Task],
    (settings, importance): (&QuantSettings, &Importance),
) {
    let by_key: BTreeMap<String, ValueId> = quantized
        .all_values()
        .into_iter()
        .map(|v| (quantized.value_key(v), v))
        .collect();
    for form in &plan.weights {
        let Some(&value) = by_key.get(&form.key) else {
            continue;
        };
        if tasks.iter().any(|t| t.value == value) {
            continue;
        }
        let weighing = importance.0.get(&form.key).map(Vec::as_slice);
        if let Ok(grid) = quantize_weights::grid(quantized, value, form, settings, weighing) {
            set_weight(quantized, value, &grid.rounded());
        }
    }
}

/// The most layers since the last cut before a wide one is taken.
const PATIENCE: usize = 12;

/// The walk along the graph.
struct Walk<'a> {
    model: &'a Model,
    quantized: Model,
    tasks: &'a [Task],
    settings: (&'a QuantSettings, &'a Importance),
    options: &'a Options,
    data: &'a DataSet,
    /// Of the float model, and of the quantized one.
    flows: [Flow<'a>; 2],
    /// For what a layer or a block learns from.
    budget: Budget,
    padding: Padding,
    cuts: Cuts,
    /// The boundary that the flows stand at.
    at: usize,
    /// Layers since then, with the groups of their grids.
    members: Vec<(Member, Vec<usize>)>,
    gains: Vec<(f64, f64)>,
    outcome: Outcome,
}

impl Walk<'_> {
    fn layer(&mut self, index: usize) -> Result<(), Error> {
        let task = &self.tasks[index];
        if let Some(next) = self.next_cut(task.place) {
            let all = std::mem::take(&mut self.members);
            let (inside, behind) = all
                .into_iter()
                .partition(|(m, _)| self.tasks[m.task].place < next);
            self.members = behind;
            if self.options.methods.blocks() {
                self.block(next, inside)?;
            }
            self.flows[0].advance(self.model, self.cuts.at(next))?;
            self.flows[1].advance(&self.quantized, self.cuts.at(next))?;
            self.at = next;
        }
        let float = Side {
            model: self.model,
            flow: &self.flows[0],
        };
        let side = Side {
            model: &self.quantized,
            flow: &self.flows[1],
        };
        let seed = (self.options.seed, task.form.key.as_str());
        let sides = [float, side];
        let of = (&task.units[..], &task.matrix);
        let samples = capture::capture(sides, of, (self.data, &self.padding), seed, &self.budget)?;
        let chosen = samples
            .and_then(|s| choose(&self.quantized, task, self.settings, Some(&s), self.options));
        match chosen {
            Ok((chosen, entries)) => {
                self.outcome.layers.0 += 1;
                self.gains.push(chosen.errors);
                let member = member(self.model, &self.quantized, (index, task), &chosen);
                record(
                    &mut self.outcome,
                    &mut self.quantized,
                    task,
                    &chosen,
                    &entries,
                );
                self.members.extend(member.map(|m| (m, entries)));
            }
            Err(why) => self.outcome.skips.push((label(self.model, task), why)),
        }
        Ok(())
    }

    /// Where the flows go before a layer. Blocks are cut where one value crosses, and hold two layers at least.
    fn next_cut(&self, place: usize) -> Option<usize> {
        let next = self.cuts.best(self.at, place)?;
        let blocks = self.options.methods.blocks() && self.members.len() < PATIENCE;
        let waits = blocks && (self.members.len() < 2 || self.cuts.at(next).len() > 1);
        (!waits).then_some(next)
    }

    /// Learns the block between the last cut and the next one.
    fn block(&mut self, next: usize, inside: Vec<(Member, Vec<usize>)>) -> Result<(), Error> {
        let [last] = self.cuts.at(next) else {
            return Ok(());
        };
        let mut roots = self.cuts.at(self.at).to_vec();
        if let (0, [one]) = (self.at, self.model.main().inputs.as_slice()) {
            roots = vec![*one];
        }
        let (mut last, mut pooled) = (*last, false);
        if let [first] = &mut roots[..] {
            (*first, last, pooled) = blocks::inside(self.model, (*first, last));
        }
        let key = self.model.value_key(last);
        let shapes = self.data.peek_shapes(1).into_iter();
        let shapes = shapes
            .map(|(name, dtype, dims)| (name, (dtype, dims)))
            .collect();
        let facts = infer::infer(&self.quantized, &shapes, &infer::Options::default());
        let (members, entries): (Vec<Member>, Vec<Vec<usize>>) = inside.into_iter().unzip();
        let models = (self.model, &self.quantized);
        let learned = match blocks::find(models, &facts, &roots, (last, pooled), &members) {
            Ok(found) => {
                let sides = [(models.0, &self.flows[0]), (models.1, &self.flows[1])];
                let drop = self.options.methods.has(Method::Qdrop);
                let samples = blocks::samples(
                    sides[0],
                    sides[1],
                    &found,
                    (drop, &self.padding),
                    &self.budget,
                )?;
                samples.and_then(|s| blocks::learn(&found, &members, &s, self.options))
            }
            Err(why) => Err(why),
        };
        let learned = match learned {
            Ok(learned) => learned,
            Err(why) => {
                let said = &mut self.outcome.said;
                let why = format!(": {why}");
                said.say("not learned as a block: the layers before", &key, &why);
                return Ok(());
            }
        };
        if !learned.better {
            self.outcome.said.say(
                "what layers learned one by one stays for the block up to",
                &key,
                ": learned together it was worse on held-out samples",
            );
            return Ok(());
        }
        self.outcome.blocks += 1;
        for layer in learned.layers {
            let member = &members[layer.member];
            let task = &self.tasks[member.task];
            let values = task.matrix.scatter(&layer.values);
            set_weight(&mut self.quantized, task.value, &values);
            let params = chosen_params(&layer.grid, &entries[layer.member]).filter(|_| task.free);
            let chosen = WeightOverride { values, params };
            let overrides = &mut self.outcome.overrides.0;
            overrides.insert(task.form.key.clone(), chosen);
            let moved = layer.delta.iter().any(|&d| d != 0.0);
            if moved && correct_bias::apply(&mut self.quantized, member.node, &layer.delta).is_ok()
            {
                let key = self.quantized.node_key(member.node);
                let known = self.outcome.corrections.0.entry(key);
                let sums = known.or_insert_with(|| vec![0.0; layer.delta.len()]);
                sums.iter_mut().zip(&layer.delta).for_each(|(s, d)| *s += d);
            }
        }
        for (value, init, scale) in learned.scales {
            if let Some(old) = self.quantized.constant(init)
                && let Ok(tensor) = Tensor::from_f32_as(old.dtype(), old.dims(), &[scale])
            {
                self.quantized.set_initializer(init, tensor);
                self.outcome
                    .scales
                    .insert(self.model.value_key(value), scale);
            }
        }
        Ok(())
    }
}

fn member(
    model: &Model,
    quantized: &Model,
    (index, task): (usize, &Task),
    chosen: &Chosen,
) -> Option<Member> {
    let [(unit, _)] = task.units.as_slice() else {
        return None;
    };
    let weight = model.input_constant(unit.node, 1)?;
    Some(Member {
        task: index,
        node: unit.node,
        matrix: task.matrix.clone(),
        grid: chosen.grid.clone(),
        weights: task.matrix.gather(&weight.to_f32().ok()?),
        values: chosen.values.clone(),
        free: chosen.free,
        free_bias: correct_bias::obstacle(quantized, unit.node).is_none(),
    })
}

fn set_weight(quantized: &mut Model, value: ValueId, values: &[f32]) {
    if let Some(old) = quantized.constant(value)
        && let Ok(tensor) = Tensor::from_f32_as(old.dtype(), old.dims(), values)
    {
        quantized.set_initializer(value, tensor);
    }
}

fn choose(
    quantized: &Model,
    task: &Task,
    (settings, importance): (&QuantSettings, &Importance),
    samples: Option<&Samples>,
    options: &Options,
) -> Result<(Chosen, Vec<usize>), String> {
    let weighing = importance.0.get(&task.form.key).map(Vec::as_slice);
    let own = quantize_weights::grid(quantized, task.value, &task.form, settings, weighing)?;
    let weights = task.matrix.gather(&own.data);
    let (grid, entries) = grid(&task.matrix, &own)?;
    let (unit, _) = &task.units[0];
    let node = unit.node;
    let bias = unit.bias_values(quantized, task.matrix.rows);
    let shared = task.units.len() > 1;
    let layer = Layer {
        matrix: &task.matrix,
        weights,
        // Uses of a shared weight may differ in what follows: the product itself is judged then.
        bias: bias
            .filter(|_| !shared)
            .ok_or("its bias is computed at run time")?,
        activations: match unit.activations.as_slice() {
            [one] => vec![*one; task.matrix.rows],
            each => each.to_vec(),
        },
        asymmetric: settings.weight_scheme == Scheme::Asymmetric,
        ties: match own.free {
            Some(_) => Ties::of(own.scales.len(), entries.len()),
            None => Ties::Some,
        },
        convolution: matches!(quantized.node(node).op_type(), "Conv" | "ConvTranspose"),
        fixed_bias: shared || correct_bias::obstacle(quantized, node).is_some(),
    };
    let kind = own.free.unwrap_or_default();
    let store = move |scale: f32| kind.stored(scale);
    let mut chosen = match samples {
        Some(samples) => layer::improve(&layer, grid, samples, options, &store),
        None => layer::improve_without_data(&layer, grid, options, &store),
    };
    chosen.free = own.free.filter(|_| layer.ties == Ties::Free && task.free);
    Ok((chosen, entries))
}

/// What the rounding of a weight takes from the mean of each output, by the means that BatchNormalization states.
fn analytic_correction(
    quantized: &Model,
    task: &Task,
    values: &[f32],
    normals: &ChannelNormals,
) -> Result<Vec<f32>, String> {
    let [(unit, slot)] = task.units.as_slice() else {
        return Err("its weight has several uses".to_owned());
    };
    if let Some(why) = correct_bias::obstacle(quantized, unit.node) {
        return Err(why);
    }
    let input = quantized
        .input(unit.node, *slot)
        .ok_or("an input is missing")?;
    let means: Vec<f64> = normals
        .of(quantized, input)?
        .iter()
        .map(|n| n.mean)
        .collect();
    let weight = quantized.constant(task.value).and_then(|t| t.to_f32().ok());
    let weights = task
        .matrix
        .gather(&weight.ok_or("its weight cannot be read")?);
    let lost: Vec<f32> = weights.iter().zip(values).map(|(w, q)| w - q).collect();
    let delta = task.matrix.constant_response(&lost, &means);
    let delta = delta.ok_or("the statistics are not those of its input channels")?;
    Ok(delta.into_iter().map(|d| d as f32).collect())
}

fn record(
    outcome: &mut Outcome,
    quantized: &mut Model,
    task: &Task,
    chosen: &Chosen,
    entries: &[usize],
) {
    let values = task.matrix.scatter(&chosen.values);
    set_weight(quantized, task.value, &values);
    let node = task.units[0].0.node;
    let key = quantized.node_key(node);
    for method in &chosen.undone {
        outcome.said.say(
            &format!("{method} was undone for"),
            &key,
            ": it made the output worse on held-out samples",
        );
    }
    if !chosen.changed() {
        return;
    }
    outcome.layers.1 += 1;
    if chosen.kept.contains(&Method::BiasCorrection)
        && correct_bias::apply(quantized, node, &chosen.delta).is_ok()
    {
        outcome.corrections.0.insert(key, chosen.delta.clone());
    }
    let params = chosen_params(&chosen.grid, entries).filter(|_| task.free);
    outcome
        .overrides
        .0
        .insert(task.form.key.clone(), WeightOverride { values, params });
}

/// The parameters of each group from the entries of the grid; `None` for codes that are no integers.
fn chosen_params(grid: &Grid, entries: &[usize]) -> Option<Vec<QParams>> {
    let Levels::Integer { qmin, qmax } = grid.levels else {
        return None;
    };
    let count = entries.iter().max().map_or(0, |m| m + 1);
    let empty = QParams {
        scale: 1.0,
        zero_point: 0,
        qmin,
        qmax,
    };
    let mut params = vec![empty; count];
    for ((&scale, &zero_point), &at) in grid.scales.iter().zip(&grid.zeros).zip(entries) {
        params[at].scale = scale;
        params[at].zero_point = zero_point;
    }
    Some(params)
}

fn summarize(outcome: &mut Outcome, gains: &[(f64, f64)]) {
    let ratios: Vec<f64> = gains
        .iter()
        .filter(|(before, after)| *before > 0.0 && *after > 0.0)
        .map(|(before, after)| 10.0 * (before / after).log10())
        .collect();
    if ratios.is_empty() {
        return;
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    let (layers, changed) = outcome.layers;
    outcome.notes.insert(
        0,
        format!(
            "optimize: {changed} of {layers} layers were changed; on held-out samples their outputs gained {mean:.1} dB on average; {} blocks were learned as a whole", outcome.blocks
        ),
    );
}
