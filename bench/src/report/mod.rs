//! Tables and plots of results.

use std::error::Error;
use std::fs;
use std::path::Path;

use crate::ReportArgs;
use crate::results::{Results, SCHEMA};

mod chart;
mod headline;
mod page;
mod svg;
mod table;

/// Prints the table and writes all files.
pub(crate) fn write(results: &Results, out: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(out)?;
    fs::write(out.join("results.json"), serde_json::to_string_pretty(results)? + "\n")?;
    tables(results, out)
}

/// From a file instead of a measurement.
pub(crate) fn again(args: &ReportArgs) -> Result<(), Box<dyn Error>> {
    let path = &args.results;
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let results: Results =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if results.schema != SCHEMA {
        return Err(format!("schema {} instead of {SCHEMA}: measure again", results.schema).into());
    }
    let results = results.sorted();
    let beside = path.parent().unwrap_or(Path::new("."));
    let out = args.out.as_deref().unwrap_or(beside);
    fs::create_dir_all(out)?;
    tables(&results, out)?;
    if let Some(headline) = &args.headline {
        fs::write(headline, headline::svg(&results)?)?;
        eprintln!("written to {}", headline.display());
    }
    Ok(())
}

fn tables(results: &Results, out: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(out.join("results.md"), table::markdown(results))?;
    fs::write(out.join("report.html"), page::html(results))?;
    print!("{}", table::terminal(results));
    eprintln!("written to {}", out.display());
    Ok(())
}
