#!/bin/sh
# Creates a certificate authority, keys and certificates of a server and of a client, and an ssl.config for TensorFlow
# Serving and tools/serve.py. For tests of TLS, not for production.
#   serving_config/make_test_certificates.sh FOLDER [HOST]
set -eu
mkdir -p "$1"
cd "$1"
host=${2:-localhost}
umask 077

openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=test authority" -keyout ca.key -out ca.pem
for name in server client; do
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name.key" -out "$name.csr"
  # A client compares the host name of the server with subjectAltName.
  echo "subjectAltName=DNS:$host,DNS:localhost,IP:127.0.0.1" > "$name.ext"
  openssl x509 -req -days 30 -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial \
    -extfile "$name.ext" -out "$name.pem"
  rm "$name.csr" "$name.ext"
done

# The file contains the PEM texts, with \n for line ends.
text() { awk '{printf "%s\\n", $0}' "$1"; }
cat > ssl.config <<CONFIG
server_key: "$(text server.key)"
server_cert: "$(text server.pem)"
custom_ca: "$(text ca.pem)"
client_verify: true
CONFIG
