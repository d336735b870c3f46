//! The table of results.

/// Rows of: what, calve's number, what it is compared with, the ratio of both, the target, and whether it is met.
#[derive(Default)]
pub struct Table(Vec<[String; 6]>);

impl Table {
    /// A ratio against something that was measured in turn with it. `most` is the target.
    pub fn ratio(&mut self, what: &str, ours: String, theirs: String, ratio: f64, most: Option<f64>) {
        let target = most.map_or(String::new(), |most| format!("≤ {most:.2} ×"));
        self.row(what, ours, theirs, format!("{ratio:.2} ×"), target, most.map(|most| ratio <= most));
    }

    /// How many times better than something that was measured in turn with it. `least` is the target.
    pub fn at_least(&mut self, what: &str, ours: String, theirs: String, ratio: f64, least: Option<f64>) {
        let target = least.map_or(String::new(), |least| format!("≥ {least:.2} ×"));
        self.row(what, ours, theirs, format!("{ratio:.2} ×"), target, least.map(|least| ratio >= least));
    }

    /// A number against a limit in the same unit.
    pub fn limit(&mut self, what: &str, ours: String, value: f64, limit: f64, unit: &str) {
        let ratio = format!("{:.2} ×", value / limit);
        self.row(what, ours, String::new(), ratio, format!("≤ {limit} {unit}"), Some(value <= limit));
    }

    /// A number that nothing was promised about.
    pub fn note(&mut self, what: &str, ours: String) {
        self.row(what, ours, String::new(), String::new(), String::new(), None);
    }

    fn row(
        &mut self,
        what: &str,
        ours: String,
        theirs: String,
        ratio: String,
        target: String,
        met: Option<bool>,
    ) {
        let met = met.map_or("", |met| if met { "met" } else { "MISSED" });
        let row = [what.to_owned(), ours, theirs, ratio, target, met.to_owned()];
        // A run takes minutes: whoever waits sees what there is.
        eprintln!(
            "  {}",
            row.iter().filter(|cell| !cell.is_empty()).cloned().collect::<Vec<_>>().join(" · ")
        );
        self.0.push(row);
    }

    pub fn print(&self) {
        let headings = ["what", "calve", "beside", "ratio", "target", ""].map(str::to_owned);
        let rows = || std::iter::once(&headings).chain(&self.0);
        let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        for (index, row) in rows().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
            if index == 0 {
                let lines = widths.iter().map(|width| "-".repeat(*width));
                println!("| {} |", lines.collect::<Vec<_>>().join(" | "));
            }
        }
    }
}
