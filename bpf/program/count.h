/* Counters, and the last step of every packet: its verdict is counted and decides the XDP action. */
#pragma once
#include "parse.h"
#include "vlan.h"
#include "capture.h"

static __always_inline void count(struct packet *packet, u32 verdict_or_event)
{
	struct counter *counter = counters.lookup(&verdict_or_event);

	observe_counter(verdict_or_event);
	if (!counter)
		return;
	counter->packets++;
	counter->bytes += packet->frame_bytes;
}

/* A packet of a flow is forwarded. */
static __always_inline void count_traffic(struct packet *packet, u32 farm, u32 backend, bool from_client)
{
	struct traffic *of_farm = farm_traffic.lookup(&farm);
	struct traffic *of_backend = backend_traffic.lookup(&backend);

	observe_farm(farm, backend);
	if (!of_farm || !of_backend)
		return;
	if (from_client) {
		of_farm->packets_in++;
		of_farm->bytes_in += packet->frame_bytes;
		of_backend->packets_in++;
		of_backend->bytes_in += packet->frame_bytes;
	} else {
		of_farm->packets_out++;
		of_farm->bytes_out += packet->frame_bytes;
		of_backend->packets_out++;
		of_backend->bytes_out += packet->frame_bytes;
	}
}

static __always_inline void count_connection(u32 farm, u32 backend)
{
	struct traffic *of_farm = farm_traffic.lookup(&farm);
	struct traffic *of_backend = backend_traffic.lookup(&backend);

	if (of_farm)
		of_farm->connections++;
	if (of_backend)
		of_backend->connections++;
}

/* Count the verdict. Returns the XDP action. */
static __always_inline int conclude(struct packet *packet, u32 verdict)
{
	count(packet, verdict);
	if (is_pass(verdict))
		return XDP_PASS;
	if (is_drop(verdict)) {
		struct traffic *of_farm = packet->farm ? farm_traffic.lookup(&packet->farm) : NULL;

		if (of_farm)
			of_farm->drops++;
		return packet->answered ? XDP_TX : XDP_DROP;
	}
	if (packet->egress_ifindex == packet->context->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(packet->egress_ifindex, 0);
}

/* The end of every path: the XDP action. */
static __always_inline int finish(struct packet *packet, u32 verdict)
{
	int action;

	verdict = retag(packet, verdict, is_tagged(packet));
	action = conclude(packet, verdict);
	observe_end(packet, action);
	return action;
}
