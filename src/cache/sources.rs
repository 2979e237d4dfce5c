//! The tables that a cache or a topic declares, and what has to watch them.

use crate::log::Source;

#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) tables: Vec<String>,
    /// Tables that are to be watched, each with the expression of the key and the columns that count.
    watched: Vec<(String, String, Vec<String>)>,
    /// Whether it was said which they are, be it none.
    pub(crate) declared: bool,
}

impl Sources {
    pub(crate) fn set_tables<T: Into<String>>(&mut self, tables: impl IntoIterator<Item = T>) {
        self.tables = tables.into_iter().map(Into::into).collect();
        self.declared = true;
    }

    pub(crate) fn watch<T: Into<String>>(
        &mut self,
        table: &str,
        key: &str,
        columns: impl IntoIterator<Item = T>,
    ) {
        let columns = columns.into_iter().map(Into::into).collect();
        self.watched.push((table.to_owned(), key.to_owned(), columns));
        self.declared = true;
    }

    /// All that is watched is a table, too.
    #[must_use]
    pub(crate) fn completed(mut self) -> Self {
        for (table, ..) in &self.watched {
            if !self.tables.contains(table) {
                self.tables.push(table.clone());
            }
        }
        self
    }

    pub(crate) fn of(&self, cache: &str) -> Vec<Source> {
        let source = |(table, key, columns): &(String, String, Vec<String>)| Source {
            cache: cache.to_owned(),
            table: table.clone(),
            key: key.clone(),
            columns: columns.clone(),
        };
        self.watched.iter().map(source).collect()
    }
}
