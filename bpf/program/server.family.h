/* Packets without a flow that come from the service of a backend: replies whose connection is gone.
 *
 * A backend in mode dnat answers its clients by its own address, through this node. What belongs to no flow must not reach
 * the client, which never asked that address. Everything else of the backend passes: other ports, connections that it opens,
 * replies to the node itself (health checks), and connections that came to its port through this node without a VIP.
 */

static __always_inline u32 find_server_range_FAM(struct addr_FAM *address, __be16 port, u8 protocol)
{
	struct range_key_FAM range = {
		.prefix_length = 8 * (sizeof(range) - sizeof(range.prefix_length) - sizeof(range.zero_after)),
		.protocol = protocol,
		.address = *address,
		.port = port,
	};
	struct server *server = server_ranges_FAM.lookup(&range);

	return server ? server->flags : 0;
}

/* SERVER_FLAG_* of the backends' service at this address, port and protocol; 0: none. `*host`: the same of all services there. */
static __always_inline u32 find_server_FAM(struct addr_FAM *address, __be16 port, u8 protocol, u32 *host)
{
	struct service_key_FAM exact = { .address = *address, .protocol = protocol };
	struct server *server = servers_FAM.lookup(&exact); /* port 0 stands for the host */

	*host = server ? server->flags : 0;
	if (!server || !port)
		return 0;
	exact.port = port;
	server = servers_FAM.lookup(&exact);
	if (server)
		return server->flags;
	return *host & SERVER_FLAG_RANGES ? find_server_range_FAM(address, port, protocol) : 0;
}

/* Would the kernel forward the packet, as it is? Not if it is for the node itself. */
static __always_inline bool is_in_transit_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct bpf_fib_lookup fib_params = { .ifindex = ingress_of(packet) };
	int result;

	fill_fib_addresses_FAM(&fib_params, &key->source, &key->destination);
	result = bpf_fib_lookup(packet->context, &fib_params, sizeof(fib_params), 0);
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* Did the client open this connection without a VIP? Then its packets came through here. `key` is that of a reply. */
static __always_inline bool is_direct_FAM(struct flow_key_FAM *key)
{
	u32 zero = 0;
	struct connection_FAM *scratch = scratch_FAM.lookup(&zero);
	struct flow_key_FAM *forward;

	if (!scratch)
		return false;
	forward = &scratch->reply_key;
	*forward = *key;
	forward->source = key->destination;
	forward->destination = key->source;
	forward->source_port = key->destination_port;
	forward->destination_port = key->source_port;
	return direct_FAM.lookup(forward);
}

/* The packet has neither a flow nor a VIP; `key` is its own, or opposite to that of the packet that an ICMP error quotes. */
static __always_inline u32 handle_transit_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u32 host = 0, one = 1, flags;

	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return COUNTER_PASS_NOT_OURS;
	flags = find_server_FAM(&key->source, key->source_port, key->protocol, &host);
	if (!(host & SERVER_FLAG_DNAT)) {
		if (find_server_FAM(&key->destination, key->destination_port, key->protocol, &host) & SERVER_FLAG_DNAT &&
		    packet->protocol == key->protocol && !direct_FAM.lookup(key))
			direct_FAM.update(key, &one);
		return COUNTER_PASS_NOT_OURS;
	}
	if (is_later_fragment(packet)) {
		if (!is_in_transit_FAM(packet, key))
			return COUNTER_PASS_NOT_OURS;
		return is_fenced(packet) ? COUNTER_DROP_FENCED : COUNTER_DROP_FRAGMENT;
	}
	if (!(flags & SERVER_FLAG_DNAT) || is_direct_FAM(key) || !is_in_transit_FAM(packet, key)) {
		if (packet->fragment)
			remember_kernel_fragments_FAM(packet, key);
		return COUNTER_PASS_NOT_OURS;
	}
	return is_fenced(packet) ? COUNTER_DROP_FENCED : COUNTER_DROP_NO_FLOW;
}

/* The verdict on a packet for a VIP without a flow, whose source is a service of a backend; `serves`: a farm listens there.
 * CONTINUE: its source is none.
 *
 * A TCP segment is the reply of a connection that is gone. A datagram is that too, or it was forged: a farm that took it would
 * let backends answer each other for ever.
 */
static __always_inline u32 check_server_FAM(struct packet *packet, struct flow_key_FAM *key, bool serves)
{
	u32 host;

	if (is_syn(packet) || !find_server_FAM(&key->source, key->source_port, key->protocol, &host))
		return CONTINUE;
	return serves && key->protocol == IPPROTO_UDP ? COUNTER_DROP_MARTIAN : COUNTER_DROP_NO_FLOW;
}

/* A source that no packet for a VIP has: no single host has it, or it is a VIP. */
static __always_inline bool is_martian_FAM(struct addr_FAM *source)
{
	return is_impossible_FAM(source) || vips_FAM.lookup((struct vip_key_FAM *)source);
}

/* CONTINUE, or the verdict on a connection that no client can have opened: from a martian (RFC 1812 5.3.7), or from the service
 * of a backend. `key` is that of its first packet, or opposite to that of the packet that an ICMP error quotes. `serves`: a farm
 * listens where it leads. */
static __always_inline u32 check_client_FAM(struct packet *packet, struct flow_key_FAM *key, bool serves)
{
	return is_martian_FAM(&key->source) ? COUNTER_DROP_MARTIAN : check_server_FAM(packet, key, serves);
}
