//! Notes that say the same of several layers in one line.

/// The most names in a line.
const NAMES: usize = 3;

/// See the head of this file.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes(Vec<(String, String, Vec<String>)>);

impl Notes {
    /// Says of `subject` what stands before and behind its name.
    pub(super) fn say(&mut self, before: &str, subject: &str, behind: &str) {
        let same = |(b, a, _): &&mut (String, String, Vec<String>)| b == before && a == behind;
        match self.0.iter_mut().find(same) {
            Some((_, _, subjects)) => subjects.push(subject.to_owned()),
            None => {
                let subjects = vec![subject.to_owned()];
                self.0
                    .push((before.to_owned(), behind.to_owned(), subjects));
            }
        }
    }

    /// The lines, in the order in which they were first said.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(before, behind, subjects)| {
            let names: Vec<String> = subjects
                .iter()
                .take(NAMES)
                .map(|s| format!("`{s}`"))
                .collect();
            let more = match subjects.len().saturating_sub(NAMES) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("optimize: {before} {}{more}{behind}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_several_is_one_line() {
        let mut notes = Notes::default();
        for (subject, why) in [
            ("a", ": x"),
            ("b", ": y"),
            ("c", ": x"),
            ("d", ": x"),
            ("e", ": x"),
        ] {
            notes.say("left as it is:", subject, why);
        }
        let lines: Vec<String> = notes.lines().collect();
        assert_eq!(
            lines,
            [
                "optimize: left as it is: `a`, `c`, `d` and 1 more: x",
                "optimize: left as it is: `b`: y"
            ]
        );
    }
}
