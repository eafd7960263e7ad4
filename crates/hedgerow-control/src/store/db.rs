//! One face over the database: SQLite now, PostgreSQL as a further variant.
//!
//! SQL is one portable text: `$1`, `RETURNING`, `ON CONFLICT`, `BYTEA`, `BIGINT`.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite, Transaction};

use super::StoreError;

/// Readers beside the one writer.
const READERS_MAX: u32 = 4;
/// How long a statement waits for another process (a backup) to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes the write lock at once, so that no change finds out halfway that another came first.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// A value bound to a statement.
#[derive(Debug, Clone)]
pub(crate) enum Val {
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
    /// Nothing.
    Null,
}

impl From<i64> for Val {
    fn from(v: i64) -> Self {
        Self::Int(v)
    }
}

impl From<u64> for Val {
    fn from(v: u64) -> Self {
        Self::Int(i64::try_from(v).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Val {
    fn from(v: &str) -> Self {
        Self::Text(v.to_owned())
    }
}

impl From<String> for Val {
    fn from(v: String) -> Self {
        Self::Text(v)
    }
}

impl From<&[u8]> for Val {
    fn from(v: &[u8]) -> Self {
        Self::Blob(v.to_vec())
    }
}

impl From<Vec<u8>> for Val {
    fn from(v: Vec<u8>) -> Self {
        Self::Blob(v)
    }
}

impl<T: Into<Self>> From<Option<T>> for Val {
    fn from(v: Option<T>) -> Self {
        v.map_or(Self::Null, Into::into)
    }
}

/// Writes a list of values of mixed kinds.
macro_rules! vals {
    ($($v:expr),* $(,)?) => { vec![$($crate::store::db::Val::from($v)),*] };
}
pub(crate) use vals;

/// The database: one writer connection, a few readers.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    /// SQLite in a file, write-ahead log.
    Sqlite {
        /// Has exactly one connection, so that writes queue here and not on the file's lock.
        writer: SqlitePool,
        /// Reads the last committed state.
        readers: SqlitePool,
    },
}

impl Pool {
    /// Opens the file, creating it and bringing its schema up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite gives its log the mode of the file it finds.
        crate::disk::touch(path).map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        Ok(Self::Sqlite { writer, readers })
    }

    /// Closes every connection and folds the log into the file.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }

    /// Begins a change. Nothing is kept before [`Tx::commit`].
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        match self {
            Self::Sqlite { writer, .. } => match writer.begin_with(BEGIN).await {
                Ok(tx) => Ok(Tx::Sqlite(tx)),
                // When the disk is full SQLite ends a transaction by itself, and the driver goes on
                // believing in it: such a connection never begins another.
                Err(error) => {
                    tracing::warn!(%error, "the writer's connection is opened anew");
                    writer.acquire().await?.close().await.unwrap_or_default();
                    Ok(Tx::Sqlite(writer.begin_with(BEGIN).await?))
                }
            },
        }
    }

    /// Reads rows of the last committed state.
    pub(crate) async fn rows(
        &self,
        sql: &'static str,
        vals: Vec<Val>,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite { readers, .. } => Ok(bind(sql, vals)
                .fetch_all(readers)
                .await?
                .into_iter()
                .map(Row::Sqlite)
                .collect()),
        }
    }

    /// Writes a consistent copy into a new file.
    pub(crate) async fn copy_into(&self, path: &Path) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { readers, .. } => {
                let target = path.to_string_lossy().into_owned();
                bind("VACUUM INTO $1", vals![target])
                    .execute(readers)
                    .await?;
                Ok(())
            }
        }
    }
}

/// A change in the making.
#[derive(Debug)]
pub(crate) enum Tx {
    /// Holds SQLite's write lock.
    Sqlite(Transaction<'static, Sqlite>),
}

impl Tx {
    /// Runs a statement; returns how many rows it touched.
    pub(crate) async fn run(
        &mut self,
        sql: &'static str,
        vals: Vec<Val>,
    ) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(tx) => Ok(bind(sql, vals).execute(&mut **tx).await?.rows_affected()),
        }
    }

    /// Reads rows, the change so far included.
    pub(crate) async fn rows(
        &mut self,
        sql: &'static str,
        vals: Vec<Val>,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite(tx) => Ok(bind(sql, vals)
                .fetch_all(&mut **tx)
                .await?
                .into_iter()
                .map(Row::Sqlite)
                .collect()),
        }
    }

    /// Reads at most one row.
    pub(crate) async fn row(
        &mut self,
        sql: &'static str,
        vals: Vec<Val>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, vals).await?.into_iter().next())
    }

    /// Makes the change durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => Ok(tx.commit().await?),
        }
    }
}

/// One row; columns by position.
#[derive(Debug)]
pub(crate) enum Row {
    /// A row of SQLite.
    Sqlite(SqliteRow),
}

impl Row {
    /// Reads a number.
    pub(crate) fn int(&self, column: usize) -> Result<i64, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads a number that is never negative.
    pub(crate) fn uint(&self, column: usize) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_e| StoreError::corrupt("a negative number"))
    }

    /// Reads a number or nothing.
    pub(crate) fn opt_int(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads a text.
    pub(crate) fn text(&self, column: usize) -> Result<String, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads a text or nothing.
    pub(crate) fn opt_text(&self, column: usize) -> Result<Option<String>, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads bytes.
    pub(crate) fn blob(&self, column: usize) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads bytes or nothing.
    pub(crate) fn opt_blob(&self, column: usize) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// Reads exactly `N` bytes.
    pub(crate) fn bytes<const N: usize>(&self, column: usize) -> Result<[u8; N], StoreError> {
        self.blob(column)?
            .try_into()
            .map_err(|_e| StoreError::corrupt("bytes of another length"))
    }
}

fn bind(sql: &'static str, vals: Vec<Val>) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
    let mut query = sqlx::query(sql);
    for val in vals {
        query = match val {
            Val::Int(v) => query.bind(v),
            Val::Text(v) => query.bind(v),
            Val::Blob(v) => query.bind(v),
            Val::Null => query.bind(None::<i64>),
        };
    }
    query
}
