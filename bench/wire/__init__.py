"""Part "wire" of the suite: what balancers forward in namespaces joined by veths, each measured under the same conditions."""
