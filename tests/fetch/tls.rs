//! TLS: a certificate of an authority that the host trusts, and those that are not to be trusted.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::server::{Content, Server, status};
use crate::world::{World, noise, sha256};

/// An authority of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A server's certificate for that name; `expired` for one of long ago.
    fn server(&self, name: &str, expired: bool) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

/// Runs vmctl on a server with this certificate, with the authority trusted or not.
fn fetch(authority: &Authority, config: rustls::ServerConfig, trusted: bool) -> (bool, String) {
    let (world, content) = (World::new(), Content::new(noise(102_400, 40)));
    let digest = sha256(&content.bytes).to_string();
    let server = Server::start_tls(config, move |asked, wire| content.serve(asked, wire));
    let roots = world.path("roots.pem");
    let pem = if trusted { authority.0.pem() } else { Authority::new().0.pem() };
    std::fs::write(&roots, pem).unwrap();
    let url = server.url("/disk.raw");
    let output = world.vmctl(&["fetch", "image", &url, "--checksum", &digest]).env("SSL_CERT_FILE", &roots).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_server_with_a_certificate_of_a_trusted_authority_is_used() {
    let authority = Authority::new();
    let (done, said) = fetch(&authority, authority.server("127.0.0.1", false), true);
    assert!(done, "{said}");
}

#[test]
fn a_certificate_of_a_stranger_of_another_name_or_of_long_ago_is_refused() {
    let authority = Authority::new();
    for (config, trusted) in [
        (authority.server("127.0.0.1", false), false),
        (authority.server("mirror.example.org", false), true),
        (authority.server("127.0.0.1", true), true),
    ] {
        let (done, said) = fetch(&authority, config, trusted);
        assert!(!done && said.contains("the server's certificate is not trusted"), "{said}");
        assert!(said.contains("hint: if the authority that signed it is your own"), "{said}");
    }
}

#[test]
fn a_redirect_from_https_to_http_is_not_followed() {
    let authority = Authority::new();
    let (world, content) = (World::new(), Content::new(noise(1024, 41)));
    let digest = sha256(&content.bytes).to_string();
    let plain = Server::start(move |asked, wire| content.serve(asked, wire));
    let target = plain.url("/disk.raw");
    let server = Server::start_tls(authority.server("127.0.0.1", false), move |_, wire| {
        status(wire, "302 Found", &format!("Location: {target}\r\n"));
    });
    let roots = world.path("roots.pem");
    std::fs::write(&roots, authority.0.pem()).unwrap();
    let url = server.url("/disk.raw");
    let output = world.vmctl(&["fetch", "image", &url, "--checksum", &digest]).env("SSL_CERT_FILE", &roots).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("redirects from https to http"), "{said}");
    assert!(plain.asked().is_empty());
}
