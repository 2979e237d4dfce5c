//! The page around the plots, and how it comes into a file: whole or not at all.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::{Chart, escaped};

/// What is told, from top to bottom.
#[derive(Debug)]
pub struct Page {
    /// What was run.
    pub title: String,
    /// Whether it went as promised, and how it went, in a sentence. `None` for what has no such thing.
    pub verdict: Option<(bool, String)>,
    /// What there is to read before the plots.
    pub tables: Vec<Table>,
    /// The plots.
    pub charts: Vec<Chart>,
}

/// Figures in rows. The first cell of each row is its name.
#[derive(Debug, Default)]
pub struct Table {
    /// What it holds.
    pub caption: String,
    /// Above the columns; none for rows of a name and a text.
    pub columns: Vec<String>,
    /// One cell for each column.
    pub rows: Vec<Vec<String>>,
}

/// Nothing is asked for, and nothing runs, whatever the page says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const STYLE: &str = include_str!("style.css");
/// The widths of a drawing in pixels, and the heights of its plot: for a screen or paper, and for a phone.
const WIDE: (f64, f64) = (960.0, 300.0);
const NARROW: (f64, f64) = (370.0, 240.0);

impl Page {
    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        );
        if let Some((good, text)) = &self.verdict {
            let (class, sign) = if *good { ("good", "✓") } else { ("bad", "✗") };
            let _ = writeln!(
                html,
                "<p class=\"verdict {class}\"><span aria-hidden=\"true\">{sign}</span> {}</p>",
                escaped(text)
            );
        }
        for table in &self.tables {
            html.push_str(&table.html());
        }
        for chart in &self.charts {
            html.push_str(&section(chart));
        }
        html + "</main>\n</body>\n</html>\n"
    }

    /// Writes the page to a file, which is the old one or the new one, and never a part.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let (beside, mut file) = create_beside(path)?;
        let written = file
            .write_all(self.html().as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&beside, path));
        if written.is_err() {
            drop(fs::remove_file(&beside));
        }
        written
    }
}

/// Whether a page can be written there, before there is one: it may take hours to have it. Leaves what is there as it is.
///
/// # Errors
/// What the file system says.
pub fn check(path: &Path) -> io::Result<()> {
    if path.exists() && !path.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is there and no file"));
    }
    let (beside, _) = create_beside(path)?;
    fs::remove_file(beside)
}

/// A new file in the same directory: only there can it take the other one's place at once.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "it names no file");
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(no_name)?);
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let file = File::create(&beside)?;
    Ok((beside, file))
}

fn section(chart: &Chart) -> String {
    let name = chart.name;
    let (wide, narrow) = (
        chart.svg(&format!("{name}-wide"), WIDE.0, WIDE.1),
        chart.svg(&format!("{name}-narrow"), NARROW.0, NARROW.1),
    );
    format!(
        "<section id=\"{name}\">\n<h2>{}</h2>\n<p>{}</p>\n{}<div class=\"wide\">\n{wide}</div>\n\
         <div class=\"narrow\">\n{narrow}</div>\n<details><summary>The same in figures</summary>\n{}</details>\n</section>\n",
        escaped(&chart.title),
        escaped(&chart.text),
        chart.legend(),
        chart.table.html()
    )
}

impl Table {
    fn html(&self) -> String {
        let plain = self.columns.is_empty();
        let mut html = format!(
            "<div class=\"scroll\"><table class=\"{}\"><caption>{}</caption>\n",
            if plain { "plain" } else { "figures" },
            escaped(&self.caption)
        );
        if !plain {
            html.push_str("<thead><tr>");
            for column in &self.columns {
                let _ = write!(html, "<th scope=\"col\">{}</th>", escaped(column));
            }
            html.push_str("</tr></thead>\n");
        }
        html.push_str("<tbody>\n");
        for row in &self.rows {
            html.push_str("<tr>");
            for (at, cell) in row.iter().enumerate() {
                let cell = escaped(cell);
                let _ = match at {
                    0 => write!(html, "<th scope=\"row\">{cell}</th>"),
                    _ => write!(html, "<td>{cell}</td>"),
                };
            }
            html.push_str("</tr>\n");
        }
        html + "</tbody></table></div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        Page { title: "a < b".to_owned(), verdict: None, tables: Vec::new(), charts: Vec::new() }
    }

    #[test]
    fn a_page_takes_the_place_of_the_old_one_and_leaves_nothing_else() {
        let directory = std::env::temp_dir().join(format!("perto-page-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("page.html");
        fs::write(&path, "old").unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "a check changes nothing");
        page().write(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("<h1>a &lt; b</h1>"));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn where_no_page_can_be_written_it_is_said_before_there_is_one() {
        let directory = std::env::temp_dir();
        for path in
            [directory.clone(), directory.join("missing/page.html"), PathBuf::from("/"), PathBuf::new()]
        {
            assert!(check(&path).is_err(), "{path:?}");
            assert!(page().write(&path).is_err(), "{path:?}");
        }
    }
}
