#!/bin/sh
set -eu
umask 077
# What the seed server signs with: whoever has it can make credentials. And a token, of which the list holds only the SHA-256.
head -c 32 /dev/urandom | base64 >signing-secret
rhizome-agent enrol-token create spiffe://shoot--garden--a/shoot-client/edge-1 --ttl 1h --file tokens.txt >edge-1.token
kubectl --namespace shoot--garden--a create secret generic vpn-signing --from-file=secret=signing-secret
kubectl --namespace shoot--garden--a create secret generic vpn-enrolment --from-file=tokens.txt=tokens.txt
helm upgrade vpn charts/rhizome-seed-server --namespace shoot--garden--a --reuse-values --values examples/charts/enrolment.yaml
