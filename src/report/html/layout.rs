//! Where the nodes of a graph are drawn: in layers, as Sugiyama, Tagawa and Toda 1981 lay out directed graphs.
//!
//! 1. Each node stands below everything it reads (longest path); what only starts a path moves down to its reader.
//! 2. A long edge passes each layer between its ends through a place of its own.
//! 3. Sweeps down and up sort each layer by the mean place of its neighbours.
//! 4. Places keep their order and their distance, and lie as near to their neighbours as that allows: the least squares
//!    are found by pooling adjacent violators (Barlow et al. 1972).

/// Sweeps that sort, and sweeps that place.
const SWEEPS: usize = 6;
/// Layers that an edge may pass with places of its own; longer ones are drawn straight.
const LONG: usize = 48;

/// Sizes in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Height of a node.
    pub(super) height: f64,
    /// Distance between layers.
    pub(super) gap: f64,
    /// Distance between neighbours.
    pub(super) apart: f64,
    /// Width of the place of a passing edge.
    pub(super) lane: f64,
}

/// A layout.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Centres of the nodes.
    pub(super) nodes: Vec<(f64, f64)>,
    /// For each edge the points that it passes, its ends included.
    pub(super) edges: Vec<Vec<(f64, f64)>>,
    /// Whether an edge is too long to have places of its own.
    pub(super) long: Vec<bool>,
    /// Width and height of all.
    pub(super) size: (f64, f64),
}

/// A node, or the place of a passing edge.
struct Place {
    rank: usize,
    width: f64,
    x: f64,
    up: Vec<usize>,
    down: Vec<usize>,
}

/// Lays out nodes of these widths. Edges go from an earlier to a later node of a graph without cycles; others are
/// ignored.
pub(super) fn layout(widths: &[f64], edges: &[(usize, usize)], sizes: Sizes) -> Layout {
    let ranks = ranks(widths.len(), edges);
    let mut places: Vec<Place> = ranks
        .iter()
        .zip(widths)
        .map(|(&rank, &width)| Place {
            rank,
            width,
            x: 0.0,
            up: Vec::new(),
            down: Vec::new(),
        })
        .collect();
    let paths: Vec<Vec<usize>> = edges
        .iter()
        .map(|&(from, to)| path(&mut places, from, to, sizes.lane))
        .collect();
    let mut layers: Vec<Vec<usize>> = Vec::new();
    for (i, p) in places.iter().enumerate() {
        if layers.len() <= p.rank {
            layers.resize(p.rank + 1, Vec::new());
        }
        layers[p.rank].push(i);
    }
    for layer in &layers {
        pack(&mut places, layer, sizes.apart, |p| p.x);
    }
    for sweep in 0..SWEEPS {
        sort(&mut places, &mut layers, sweep % 2 == 0, sizes.apart);
    }
    for sweep in 0..SWEEPS {
        align(&mut places, &layers, sweep % 2 == 0, sizes.apart);
    }
    finish(&mut places, widths.len(), &paths, &layers, sizes)
}

/// The layer of each node.
fn ranks(nodes: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    let mut open = vec![0usize; nodes];
    for &(from, to) in edges.iter().filter(|(f, t)| f != t) {
        readers[from].push(to);
        open[to] += 1;
    }
    let sources: Vec<usize> = (0..nodes).filter(|&n| open[n] == 0).collect();
    let mut rank = vec![0usize; nodes];
    let mut ready = std::collections::VecDeque::from(sources.clone());
    while let Some(n) = ready.pop_front() {
        for &r in &readers[n] {
            rank[r] = rank[r].max(rank[n] + 1);
            open[r] -= 1;
            if open[r] == 0 {
                ready.push_back(r);
            }
        }
    }
    for n in sources {
        if let Some(first) = readers[n].iter().map(|&r| rank[r]).min() {
            rank[n] = first.saturating_sub(1);
        }
    }
    rank
}

/// The places that an edge passes, its ends included.
fn path(places: &mut Vec<Place>, from: usize, to: usize, lane: f64) -> Vec<usize> {
    let (first, last) = (places[from].rank, places[to].rank);
    let mut path = vec![from];
    if last > first + 1 && last - first <= LONG {
        for rank in first + 1..last {
            path.push(places.len());
            places.push(Place {
                rank,
                width: lane,
                x: 0.0,
                up: Vec::new(),
                down: Vec::new(),
            });
        }
    }
    path.push(to);
    if last > first && last - first <= LONG {
        for pair in path.windows(2) {
            places[pair[0]].down.push(pair[1]);
            places[pair[1]].up.push(pair[0]);
        }
    }
    path
}

/// The mean place of a node's neighbours on one side, or its own where it has none.
fn mean(places: &[Place], place: usize, above: bool) -> f64 {
    let p = &places[place];
    let near = if above { &p.up } else { &p.down };
    if near.is_empty() {
        return p.x;
    }
    near.iter().map(|&n| places[n].x).sum::<f64>() / near.len() as f64
}

/// Sorts each layer by the mean of its neighbours.
fn sort(places: &mut [Place], layers: &mut [Vec<usize>], down: bool, apart: f64) {
    let count = layers.len();
    for step in 0..count {
        let layer = &mut layers[if down { step } else { count - 1 - step }];
        let mut wanted: Vec<(f64, usize)> =
            layer.iter().map(|&p| (mean(places, p, down), p)).collect();
        wanted.sort_by(|a, b| a.0.total_cmp(&b.0));
        *layer = wanted.iter().map(|w| w.1).collect();
        for (x, p) in wanted {
            places[p].x = x;
        }
        pack(places, layer, apart, |p| p.x);
    }
}

/// Moves each layer towards its neighbours.
fn align(places: &mut [Place], layers: &[Vec<usize>], down: bool, apart: f64) {
    let count = layers.len();
    for step in 0..count {
        let layer = &layers[if down { step } else { count - 1 - step }];
        for &p in layer {
            let (up, below) = (&places[p].up, &places[p].down);
            let near: Vec<f64> = up.iter().chain(below).map(|&n| places[n].x).collect();
            if !near.is_empty() {
                places[p].x = near.iter().sum::<f64>() / near.len() as f64;
            }
        }
        pack(places, layer, apart, |p| p.x);
    }
}

/// Places a layer in its order: as near to what is wanted as the distances allow, by least squares.
fn pack(places: &mut [Place], layer: &[usize], apart: f64, wanted: impl Fn(&Place) -> f64) {
    // Without the room that the ones before take, places need only be in ascending order.
    let mut room = Vec::with_capacity(layer.len());
    let mut taken = 0.0;
    for (i, &p) in layer.iter().enumerate() {
        if i > 0 {
            taken += (places[layer[i - 1]].width + places[p].width) / 2.0 + apart;
        }
        room.push(taken);
    }
    // Pools of neighbours: sum of what they want, and their number.
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (&p, room) in layer.iter().zip(&room) {
        pools.push((wanted(&places[p]) - room, 1));
        while let [.., a, b] = pools[..] {
            if a.0 / a.1 as f64 <= b.0 / b.1 as f64 {
                break;
            }
            pools.truncate(pools.len() - 2);
            pools.push((a.0 + b.0, a.1 + b.1));
        }
    }
    let placed = pools
        .into_iter()
        .flat_map(|(sum, n)| std::iter::repeat_n(sum / n as f64, n));
    for ((&p, room), x) in layer.iter().zip(&room).zip(placed) {
        places[p].x = x + room;
    }
}

/// Moves everything to where pictures begin, and follows the edges.
fn finish(
    places: &mut [Place],
    nodes: usize,
    paths: &[Vec<usize>],
    layers: &[Vec<usize>],
    sizes: Sizes,
) -> Layout {
    let left = |p: &Place| p.x - p.width / 2.0;
    let first = places.iter().map(left).fold(f64::INFINITY, f64::min);
    let start = if first.is_finite() { first } else { 0.0 };
    places.iter_mut().for_each(|p| p.x -= start);
    let width = places
        .iter()
        .map(|p| p.x + p.width / 2.0)
        .fold(0.0, f64::max);
    let step = sizes.height + sizes.gap;
    let y = |p: &Place| p.rank as f64 * step + sizes.height / 2.0;
    let half = sizes.height / 2.0;
    let edges = paths.iter().map(|path| {
        let mut points = Vec::with_capacity(path.len() * 2);
        for (i, &p) in path.iter().enumerate() {
            let p = &places[p];
            if i > 0 {
                points.push((p.x, y(p) - half));
            }
            if i + 1 < path.len() {
                points.push((p.x, y(p) + half));
            }
        }
        points
    });
    let direct = |path: &Vec<usize>| {
        let ends = path.first().zip(path.last());
        ends.is_some_and(|(&a, &b)| places[b].rank > places[a].rank + LONG)
    };
    Layout {
        long: paths.iter().map(direct).collect(),
        edges: edges.collect(),
        nodes: places[..nodes].iter().map(|p| (p.x, y(p))).collect(),
        size: (width, (layers.len() as f64 * step - sizes.gap).max(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        height: 10.0,
        gap: 10.0,
        apart: 4.0,
        lane: 2.0,
    };

    #[test]
    fn nodes_of_a_layer_do_not_overlap_and_edges_go_down() {
        let widths = [20.0; 7];
        let edges = [
            (0, 1),
            (0, 2),
            (0, 3),
            (1, 4),
            (2, 4),
            (3, 4),
            (0, 4),
            (4, 5),
            (6, 5),
        ];
        let made = layout(&widths, &edges, SIZES);
        for (i, a) in made.nodes.iter().enumerate() {
            for (j, b) in made.nodes.iter().enumerate().take(i) {
                let apart = (a.0 - b.0).abs() >= 20.0 || (a.1 - b.1).abs() >= 10.0;
                assert!(apart, "{i} and {j} overlap: {a:?} {b:?}");
            }
        }
        for (points, (from, to)) in made.edges.iter().zip(edges) {
            assert!(made.nodes[from].1 < made.nodes[to].1);
            assert!(points.windows(2).all(|p| p[0].1 <= p[1].1), "{points:?}");
        }
        // The edge from 0 to 4 passes the layer between them beside its nodes.
        assert_eq!(made.edges[6].len(), 4);
        // What only starts a path stands just above its reader.
        assert_eq!(made.nodes[6].1, made.nodes[4].1);
        assert!(
            made.nodes
                .iter()
                .all(|n| n.0 >= 10.0 && n.0 <= made.size.0 - 10.0)
        );
    }

    #[test]
    fn a_chain_is_straight() {
        let edges: Vec<(usize, usize)> = (0..99).map(|i| (i, i + 1)).collect();
        let made = layout(&[30.0; 100], &edges, SIZES);
        assert!(made.nodes.iter().all(|n| n.0 == 15.0));
        assert_eq!(made.size, (30.0, 1990.0));
    }

    #[test]
    fn nothing_has_no_size() {
        assert_eq!(layout(&[], &[], SIZES).size, (0.0, 0.0));
    }
}
