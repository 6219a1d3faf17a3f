//! All best trades of cost against loss.

use super::{Choice, Solution, Step, relaxation, undominated};

/// Partial solutions that are kept at once while the whole front is enumerated.
const STATES: usize = 4096;

/// A point of the front.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The total cost.
    pub cost: u64,
    /// The least total loss at that cost.
    pub loss: f64,
}

/// The front: by rising cost and falling loss.
#[derive(Debug, Clone)]
pub struct Front {
    points: Vec<Point>,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    /// By class, every state: the state before and the choice.
    Levels(Vec<Vec<(u32, u32)>>),
    /// The cheapest choices, and one step for each further point.
    Steps(Vec<usize>, Vec<Step>),
}

impl Front {
    /// The points. Each is the best for its cost.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether there are no others. Where there would be more than a few thousand, the points are those of the convex
    /// hull; [`super::least_loss`] finds the ones between for a budget.
    pub fn is_complete(&self) -> bool {
        matches!(self.way, Way::Levels(_))
    }

    /// The choices that make a point.
    pub fn picks(&self, point: usize) -> Vec<usize> {
        match &self.way {
            Way::Levels(levels) => {
                let mut picks = vec![0; levels.len()];
                let mut at = point;
                for (pick, level) in picks.iter_mut().zip(levels).rev() {
                    let (parent, choice) = level[at];
                    *pick = choice as usize;
                    at = parent as usize;
                }
                picks
            }
            Way::Steps(first, steps) => {
                let mut picks = first.clone();
                for s in &steps[..point] {
                    picks[s.class] = s.to;
                }
                picks
            }
        }
    }

    /// The choices that make a point, with cost and loss.
    pub fn solution(&self, classes: &[Vec<Choice>], point: usize) -> Solution {
        Solution::new(classes, self.picks(point))
    }
}

/// The whole front of trades in one call; empty where a class has no choice.
pub fn front(classes: &[Vec<Choice>]) -> Front {
    let empty = Front {
        points: Vec::new(),
        way: Way::Levels(Vec::new()),
    };
    if classes.iter().any(Vec::is_empty) {
        return empty;
    }
    enumerate(classes).unwrap_or_else(|| corners(classes))
}

/// Class by class, all partial solutions that no other one beats.
fn enumerate(classes: &[Vec<Choice>]) -> Option<Front> {
    let mut points = vec![Point { cost: 0, loss: 0.0 }];
    let mut levels = Vec::with_capacity(classes.len());
    for class in classes {
        let kept = undominated(class);
        let mut next: Vec<(Point, (u32, u32))> = Vec::with_capacity(points.len() * kept.len());
        for (at, p) in points.iter().enumerate() {
            for &pick in &kept {
                let sum = Point {
                    cost: p.cost + class[pick].cost,
                    loss: p.loss + class[pick].loss,
                };
                next.push((sum, (at as u32, pick as u32)));
            }
        }
        next.sort_by(|(a, x), (b, y)| {
            a.cost
                .cmp(&b.cost)
                .then(a.loss.total_cmp(&b.loss))
                .then(x.cmp(y))
        });
        let mut least = f64::INFINITY;
        next.retain(|(p, _)| {
            let keep = p.loss < least;
            least = least.min(p.loss);
            keep
        });
        if next.len() > STATES {
            return None;
        }
        let level;
        (points, level) = next.into_iter().unzip();
        levels.push(level);
    }
    Some(Front {
        points,
        way: Way::Levels(levels),
    })
}

/// The points on the convex hull: each is the best of all for its cost.
pub(super) fn corners(classes: &[Vec<Choice>]) -> Front {
    let (first, steps) = relaxation(classes);
    let start = Solution::new(classes, first.clone());
    let mut points = vec![Point {
        cost: start.cost,
        loss: start.loss,
    }];
    let mut last = points[0];
    for s in &steps {
        last = Point {
            cost: last.cost + s.cost,
            loss: last.loss - s.gain,
        };
        points.push(last);
    }
    Front {
        points,
        way: Way::Steps(first, steps),
    }
}
