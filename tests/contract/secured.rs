//! The shared Redis behind TLS, which lets nobody in without a certificate.

use crate::front::{Authority, Before, Front, VALID};
use crate::redis_url;
use crate::support::engines::place_of;
use crate::support::servers::Files;

pub(crate) struct Secured {
    front: Front,
    files: Files,
}

impl Secured {
    pub(crate) async fn start() -> Self {
        let authority = Authority::new();
        let files = Files::of(&authority.pem());
        files.put_ours(&authority.certify("an instance", VALID));
        let shown = authority.certify("localhost", VALID);
        let front = Front::start(place_of(&redis_url()), &shown, Some(&authority), Before::Nothing).await;
        Self { front, files }
    }

    pub(crate) fn url(&self) -> String {
        format!("rediss://localhost:{}?{}", self.front.port, self.files.parameters())
    }
}
