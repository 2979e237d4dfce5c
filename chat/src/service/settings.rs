//! What an instance of the service is told at its start: by flags, or by the environment.

use std::time::Duration;

use clap::Args;

use perto_cli::terminal::duration;

/// See `perto-chat serve --help`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// How this instance is called; names are unique among instances
    #[arg(long, env = "PERTO_INSTANCE", default_value = "instance1", value_name = "NAME", value_parser = name)]
    pub(crate) instance: String,
    /// The bound on staleness
    #[arg(long, env = "PERTO_BOUND", default_value = "1s", value_parser = duration, value_name = "TIME")]
    pub(crate) bound: Duration,
    /// How long requests are still taken after the end was asked for, while /readyz says 503: longer than balancers take to see it
    #[arg(long, env = "PERTO_DRAIN", default_value = "0s", value_parser = up_to_an_hour, value_name = "TIME")]
    pub(crate) drain: Duration,
    #[command(flatten, next_help_heading = "Access")]
    pub(crate) access: AccessSettings,
    #[command(flatten, next_help_heading = "Caches")]
    pub(crate) ttls: Ttls,
    #[command(flatten, next_help_heading = "Caches")]
    pub(crate) stale: StaleSettings,
    #[command(flatten, next_help_heading = "Caches")]
    pub(crate) sizes: Sizes,
    #[command(flatten, next_help_heading = "Imports")]
    pub(crate) imports: super::imports::ImportSettings,
    #[command(flatten, next_help_heading = "Postgres")]
    pub(crate) pool: PoolSettings,
    #[command(flatten, next_help_heading = "Alerts")]
    pub(crate) alerts: AlertSettings,
}

/// Who may ask, and how much.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessSettings {
    /// The key of cache administration, at least 32 characters; `perto-chat keys generate` makes one
    #[arg(long, env = "PERTO_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) admin_key: Option<String>,
    /// Requests a second that one company may make of this instance, twice as many at once; 0 for any number
    #[arg(long, env = "PERTO_RATE_LIMIT", default_value_t = 2_000, value_name = "N")]
    pub(crate) rate_limit: u32,
    /// How long a request may take, save an import's upload
    #[arg(long, env = "PERTO_REQUEST_TIMEOUT", default_value = "30s", value_parser = limit, value_name = "TIME")]
    pub(crate) request_timeout: Duration,
    /// MiB for bodies and answers that are under way; a company may have a quarter of it
    #[arg(long, env = "PERTO_BUFFERED_MIB", default_value_t = 128, value_name = "MIB",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(16..=1_048_576))]
    pub(crate) buffered_mib: usize,
    /// Connections at once with a valid key; without one, half as many
    #[arg(long, env = "PERTO_MAX_CONNECTIONS", default_value_t = 4_096, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,
}

/// How long values live in both tiers.
#[derive(Debug, Clone, Args)]
pub(crate) struct Ttls {
    /// Message histories and inboxes
    #[arg(long = "ttl-message", env = "PERTO_TTL_MESSAGE", default_value = "5m", value_parser = ttl, value_name = "TIME")]
    pub(crate) message: Duration,
    /// Companies, and overviews of them
    #[arg(long = "ttl-company", env = "PERTO_TTL_COMPANY", default_value = "30m", value_parser = ttl, value_name = "TIME")]
    pub(crate) company: Duration,
    /// Users
    #[arg(long = "ttl-user", env = "PERTO_TTL_USER", default_value = "30m", value_parser = ttl, value_name = "TIME")]
    pub(crate) user: Duration,
    /// Contacts, by id, by phone and in pages
    #[arg(long = "ttl-contact", env = "PERTO_TTL_CONTACT", default_value = "1h", value_parser = ttl, value_name = "TIME")]
    pub(crate) contact: Duration,
    /// Validations of contacts
    #[arg(long = "ttl-validation", env = "PERTO_TTL_VALIDATION", default_value = "30m", value_parser = ttl,
        value_name = "TIME")]
    pub(crate) validation: Duration,
    /// Tool results: how long a stored one lives
    #[arg(long = "ttl-tool-result", env = "PERTO_TTL_TOOL_RESULT", default_value = "30m", value_parser = ttl,
        value_name = "TIME")]
    pub(crate) tool_result: Duration,
    /// API keys
    #[arg(long = "ttl-api-key", env = "PERTO_TTL_API_KEY", default_value = "30m", value_parser = ttl, value_name = "TIME")]
    pub(crate) api_key: Duration,
}

/// What is served though it is known to be old.
#[derive(Debug, Clone, Args)]
pub(crate) struct StaleSettings {
    /// How long a value that was invalidated, or whose time is over, is served on while its successor is loaded or can't be, flagged as
    /// stale: 0s for never. API keys never are
    #[arg(long = "stale", env = "PERTO_STALE", default_value = "0s", value_parser = ttl_or_none, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// How long a read waits for the successor before it gets a stale answer
    #[arg(long, env = "PERTO_STALE_AFTER", default_value = "0s", value_parser = ttl_or_none, value_name = "TIME")]
    pub(crate) stale_after: Duration,
}

/// How much is held.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sizes {
    /// MiB that L1 may hold of each cache
    #[arg(long, env = "PERTO_L1_MIB", default_value_t = 64, value_name = "MIB",
        value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub(crate) l1_mib: u64,
    /// Newest messages of a chat that one entry holds
    #[arg(long, env = "PERTO_MESSAGE_WINDOW", default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) message_window: u32,
}

/// Connections to Postgres.
#[derive(Debug, Clone, Args)]
pub(crate) struct PoolSettings {
    /// Connections at most, of this instance; the log has three more
    #[arg(long, env = "PERTO_POOL_SIZE", default_value_t = Self::SIZE, value_name = "N",
        value_parser = clap::value_parser!(u32).range(4..=1_000))]
    pub(crate) pool_size: u32,
    /// How long an idle connection is kept
    #[arg(long, env = "PERTO_POOL_IDLE", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub(crate) pool_idle: Duration,
    /// How long a request waits for a connection before it is told to come back
    #[arg(long, env = "PERTO_POOL_ACQUIRE", default_value = "10s", value_parser = limit, value_name = "TIME")]
    pub(crate) pool_acquire: Duration,
    /// Whether statements are prepared on their connections: `false` behind a transaction pooler
    #[arg(long, env = "PERTO_PREPARED_STATEMENTS", default_value_t = true, value_name = "BOOL",
        action = clap::ArgAction::Set)]
    pub(crate) prepared_statements: bool,
}

/// When `/api/v1/cache/alerts` says something.
#[derive(Debug, Clone, Args)]
pub(crate) struct AlertSettings {
    /// Hit rate of the last minute, in percent: under it
    #[arg(long = "alert-hit-rate", env = "PERTO_ALERT_HIT_RATE", default_value_t = 60, value_name = "PERCENT",
        value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) hit_rate: u32,
    /// Memory of Redis, in percent of what it may use: over it
    #[arg(long = "alert-redis-memory", env = "PERTO_ALERT_REDIS_MEMORY", default_value_t = 80, value_name = "PERCENT",
        value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) redis_memory: u32,
    /// Time of a response: over it for more than one of a hundred in the last minute
    #[arg(long = "alert-response-time", env = "PERTO_ALERT_RESPONSE_TIME", default_value = "2s", value_parser = duration,
        value_name = "TIME")]
    pub(crate) response_time: Duration,
    /// How long a repaired invalidation is told of
    #[arg(long = "alert-repaired-for", env = "PERTO_ALERT_REPAIRED_FOR", default_value = "5m", value_parser = up_to_an_hour,
        value_name = "TIME")]
    pub(crate) repaired_for: Duration,
}

impl PoolSettings {
    pub(crate) const SIZE: u32 = 20;
}

/// Of samples that are kept, one a second.
fn up_to_an_hour(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time <= Duration::from_hours(1) => Ok(time),
        _ => Err("at most 1h".to_owned()),
    }
}

/// Of what has to be waited for: with none nothing would ever come.
fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than 0; like 30s".to_owned()),
        limit => Ok(limit),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    match limit(text)? {
        ttl if ttl <= Duration::from_hours(24 * 30) => Ok(ttl),
        _ => Err("at most 720h".to_owned()),
    }
}

fn ttl_or_none(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        none if none.is_zero() => Ok(none),
        _ => ttl(text),
    }
}

fn name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    match plain && (1..=64).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err("1 to 64 letters, digits, _, . or -".to_owned()),
    }
}
