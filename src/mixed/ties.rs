//! Layers that cannot choose alone: those that share a tensor store it alike, and those that read one stream of
//! activations read it in one format, or in float.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_numerics::format::Format;
use onnx_quant_numerics::knapsack::{self, Choice as Item};

use super::assign::{Choosable, Cost, Problem};
use super::sensitivity::Sensitivity;

/// Which layers are tied to each other.
#[derive(Debug, Clone)]
pub(super) struct Ties {
    /// Layers that share a tensor, in the order of the first; every other layer is alone.
    pub(super) shared: Vec<Vec<usize>>,
    /// By layer: the stream that it reads.
    streams: Vec<Option<String>>,
}

/// By class and choice: the picks of the layers in it.
pub(super) type Ways = Vec<Vec<Vec<(usize, usize)>>>;

impl Ties {
    pub(super) fn new(found: &Sensitivity) -> Self {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        let mut shared: Vec<Vec<usize>> = Vec::new();
        for (i, layer) in found.layers.iter().enumerate() {
            let mut known = layer.tensors.iter().filter_map(|t| first.get(t.as_str()));
            let at = known.next().copied().unwrap_or_else(|| {
                shared.push(Vec::new());
                shared.len() - 1
            });
            shared[at].push(i);
            for t in &layer.tensors {
                first.insert(t, at);
            }
        }
        let streams = found.layers.iter().map(|l| l.stream.clone()).collect();
        Self { shared, streams }
    }

    #[cfg(test)]
    pub(super) fn none(layers: usize) -> Self {
        Self {
            shared: (0..layers).map(|l| vec![l]).collect(),
            streams: vec![None; layers],
        }
    }

    /// The streams that layers read in few bits, with their formats.
    pub(super) fn read(
        &self,
        layers: &[(String, u64, Vec<Choosable>)],
        picks: &[usize],
    ) -> BTreeMap<&str, Format> {
        let layers = layers.iter().zip(picks).zip(&self.streams);
        layers
            .filter_map(|(((_, _, c), &p), stream)| Some((stream.as_deref()?, c[p].activations?)))
            .collect()
    }
}

impl Problem {
    /// One class for each set of layers that must agree: the choices that all of them have.
    pub(super) fn classes(&self) -> (Vec<Vec<Item>>, Ways) {
        let (mut classes, mut ways) = (Vec::new(), Vec::new());
        for set in self.bound() {
            let formats = self.formats(&set);
            if formats.len() < 2 {
                for group in set {
                    let (class, way) = self.class(&self.ties.shared[group], None);
                    classes.push(class);
                    ways.push(way);
                }
                continue;
            }
            let (mut class, mut way) = (Vec::new(), Vec::new());
            for format in formats {
                let parts = set.iter();
                let parts = parts.map(|&g| self.class(&self.ties.shared[g], Some(format)));
                let (own, picks): (Vec<_>, Ways) = parts.unzip();
                let front = knapsack::front(&own);
                for (at, point) in front.points().iter().enumerate() {
                    class.push(Item {
                        cost: point.cost,
                        loss: point.loss,
                    });
                    let chosen = front.picks(at).into_iter().zip(&picks);
                    way.push(chosen.flat_map(|(p, way)| way[p].clone()).collect());
                }
            }
            classes.push(class);
            ways.push(way);
        }
        (classes, ways)
    }

    /// The picks of all layers from those of the classes.
    pub(super) fn picks(&self, ways: &Ways, chosen: &[usize]) -> Vec<usize> {
        let mut all = vec![0; self.layers.len()];
        for (way, &pick) in ways.iter().zip(chosen) {
            for &(layer, own) in &way[pick] {
                all[layer] = own;
            }
        }
        all
    }

    /// Whether every stream is read in one format.
    pub(super) fn agrees(&self, picks: &[usize]) -> bool {
        let mut known: BTreeMap<&str, Format> = BTreeMap::new();
        let layers = self.layers.iter().zip(picks).zip(&self.ties.streams);
        layers
            .filter_map(|(((_, _, c), &p), stream)| Some((stream.as_deref()?, c[p].activations?)))
            .all(|(stream, format)| *known.entry(stream).or_insert(format) == format)
    }

    /// The formats of activations that the layers of some groups may read.
    fn formats(&self, groups: &[usize]) -> BTreeSet<Format> {
        let layers = groups.iter().flat_map(|&g| &self.ties.shared[g]);
        let choices = layers.flat_map(|&l| &self.layers[l].2);
        choices.filter_map(|c| c.activations).collect()
    }

    /// Groups of layers that are bound by streams, each set in ascending order.
    fn bound(&self) -> Vec<Vec<usize>> {
        let mut sets: Vec<(BTreeSet<&str>, Vec<usize>)> = Vec::new();
        for (at, group) in self.ties.shared.iter().enumerate() {
            let own = group.iter();
            let own = own.filter_map(|&l| self.ties.streams[l].as_deref());
            let mut set = (own.collect::<BTreeSet<&str>>(), vec![at]);
            let (touching, apart): (Vec<_>, Vec<_>) = sets
                .into_iter()
                .partition(|(streams, _)| !streams.is_disjoint(&set.0));
            sets = apart;
            for (streams, groups) in touching {
                set.0.extend(streams);
                set.1.extend(groups);
            }
            set.1.sort_unstable();
            sets.push(set);
        }
        let mut sets: Vec<Vec<usize>> = sets.into_iter().map(|(_, groups)| groups).collect();
        sets.sort();
        sets
    }

    /// The choices that all layers of a group have, those only that read this format or float where one is given.
    fn class(
        &self,
        group: &[usize],
        format: Option<Format>,
    ) -> (Vec<Item>, Vec<Vec<(usize, usize)>>) {
        let (mut class, mut way) = (Vec::new(), Vec::new());
        for (i, first) in self.layers[group[0]].2.iter().enumerate() {
            if format.is_some() && first.activations.is_some() && first.activations != format {
                continue;
            }
            let same = |l: &usize| {
                self.layers[*l].2.iter().position(|c: &Choosable| {
                    c.weights == first.weights && c.activations == first.activations
                })
            };
            let Some(rest) = group[1..].iter().map(same).collect::<Option<Vec<usize>>>() else {
                continue;
            };
            let picks = std::iter::once(i).chain(rest);
            let picks: Vec<(usize, usize)> = group.iter().copied().zip(picks).collect();
            let each = || picks.iter().map(|&(l, p)| &self.layers[l].2[p]);
            let cost = match self.cost {
                // A tensor that is shared is stored once.
                Cost::Bytes => each().map(|c| self.price(c)).max().unwrap_or(0),
                _ => each().map(|c| self.price(c)).sum(),
            };
            class.push(Item {
                cost,
                loss: each().map(|c| c.loss).sum::<f64>().min(1e30),
            });
            way.push(picks);
        }
        (class, way)
    }
}
