#!/bin/sh
set -eu
# A certificate for each node, in one Secret of the shoot.
files=--from-file=ca.crt=pki/ca.crt
for node in $(kubectl get nodes --output name | cut -d/ -f2); do
  rhizome-agent pki client --name "$node"
  files="$files --from-file=client-$node.crt=pki/client-$node.crt --from-file=client-$node.key=pki/client-$node.key"
done
kubectl --namespace kube-system create secret generic rhizome-shoot-client-tls $files
helm install vpn charts/rhizome-shoot-client --namespace kube-system --values examples/charts/shoot-client.yaml
