//! With `SeaORM`.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run -p perto-clients --example with_sea_orm`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use perto::postgres::{Pending, PendingRow};
use perto::{Cache, Load, Loaded, Perto, ReadOptions, STAMP_SQL, Stamp, StartError, Token};
use sea_orm::prelude::*;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait};

mod user {
    use sea_orm::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "users")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn pool(database_url: &str) -> Result<DatabaseConnection, Error> {
    Ok(Database::connect(database_url).await?)
}

fn users(perto: &Perto, pool: &DatabaseConnection) -> Result<Cache<i64, String>, StartError> {
    let pool = pool.clone();
    perto.cache("user").watch("users", "id").loader(move |load: Load<i64>| {
        let pool = pool.clone();
        async move { names(&pool, load.keys).await }
    })
}

async fn names(pool: &DatabaseConnection, ids: Vec<i64>) -> Result<Loaded<i64, String>, Error> {
    // The stamp is of the statement that reads the rows. The outer join brings it also where there is no row.
    let sql = format!(
        "select s.stamp, u.id, u.name from (select {STAMP_SQL} as stamp) s left join users u on u.id = any($1)"
    );
    let query = Statement::from_sql_and_values(DbBackend::Postgres, sql, [ids.into()]);
    let rows = pool.query_all_raw(query).await?;
    let stamp: String = rows.first().ok_or("no row")?.try_get_by_index(0)?;
    let mut loaded = Loaded::new(Stamp::parse(&stamp).ok_or("not a stamp")?);
    for row in rows {
        if let (Some(id), Some(name)) = (row.try_get_by_index(1)?, row.try_get_by_index(2)?) {
            loaded = loaded.with(id, name);
        }
    }
    Ok(loaded)
}

pub(crate) async fn rename(
    perto: &Perto,
    pool: &DatabaseConnection,
    id: i64,
    name: &str,
) -> Result<Option<Token>, Error> {
    let tx = pool.begin().await?;
    let renaming = user::Entity::update_many().col_expr(user::Column::Name, name.into());
    renaming.filter(user::Column::Id.eq(id)).exec(&tx).await?;
    // Deferred triggers run now. What they write at the commit would be missing from the token.
    tx.execute_unprepared("set constraints all immediate").await?;
    let rows = tx.query_all_raw(Statement::from_string(DbBackend::Postgres, perto.pending_sql())).await?;
    let rows: Vec<PendingRow> =
        rows.iter().map(|row| row.try_get_many_by_index()).collect::<Result<_, _>>()?;
    let pending = Pending::from_rows(rows);
    tx.commit().await?;
    Ok(match pending {
        Some(pending) => Some(perto.announce_pending(pending).await),
        None => None, // no row of a watched table was changed
    })
}

pub(crate) async fn instance(
    database_url: &str,
    redis_url: &str,
    pool: &DatabaseConnection,
) -> Result<(Perto, Cache<i64, String>), Error> {
    let perto = Perto::builder("shop").postgres(database_url).redis(redis_url).build()?;
    let users = users(&perto, pool)?;
    perto.migrate().await?;
    perto.start().await?;
    Ok((perto, users))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (database_url, redis_url) = (std::env::var("DATABASE_URL")?, std::env::var("REDIS_URL")?);
    let pool = pool(&database_url).await?;
    let tables = "create table if not exists users (id bigint primary key, name text not null); \
                  insert into users values (7, 'Grace') on conflict (id) do update set name = 'Grace'";
    pool.execute_unprepared(tables).await?;
    let (a, _) = instance(&database_url, &redis_url, &pool).await?;
    let (b, users_at_b) = instance(&database_url, &redis_url, &pool).await?;
    println!("before: {:?}", users_at_b.get(&7).await?.value());

    let token = rename(&a, &pool, 7, "Ada").await?.ok_or("nothing was written")?;
    println!("after: {:?}", users_at_b.get_with(&7, ReadOptions::at_least(token)).await?.value());
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}
