// Verifies DSSE envelopes with the libraries of sigstore's JavaScript client, which share no code with ours.
//
//   node verify.mjs FOLDER <cases.json       FOLDER has node_modules; a case is {envelope, keyid, pem}
//
// Answers a list of {verify, core, error}: whether @sigstore/verify accepts a sigstore bundle made around the envelope,
// and whether @sigstore/core finds a signature of that key over the pre-authentication encoding.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const load = createRequire(resolve(process.argv[2], "package.json"));
const { bundleFromJSON } = load("@sigstore/bundle");
const { crypto, dsse } = load("@sigstore/core");
const { toSignedEntity, toTrustMaterial, Verifier } = load("@sigstore/verify");

const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const thresholds = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 };

function asBundle(envelope, signature, keyid) {
  return bundleFromJSON({
    mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
    verificationMaterial: { publicKey: { hint: keyid }, tlogEntries: [] },
    dsseEnvelope: { ...envelope, signatures: [signature] },
  });
}

function check({ envelope, keyid, pem }) {
  const answer = { verify: false, core: false, error: "" };
  const key = crypto.createPublicKey(pem);
  const trusted = toTrustMaterial(nobody, () => ({ publicKey: key, validFor: () => true }));
  for (const signature of envelope.signatures.filter((one) => one.keyid === keyid)) {
    try {
      new Verifier(trusted, thresholds).verify(toSignedEntity(asBundle(envelope, signature, keyid)));
      answer.verify = true;
    } catch (error) {
      answer.error = String(error.message);
    }
    const message = dsse.preAuthEncoding(envelope.payloadType, Buffer.from(envelope.payload, "base64"));
    answer.core ||= crypto.verify(message, key, Buffer.from(signature.sig, "base64"), "sha256");
  }
  return answer;
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(check)));
