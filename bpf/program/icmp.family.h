/* ICMP errors about a flow: translated and forwarded to the sender of the packet they quote (RFC 5508). */

/* Replace ports and checksum in the quoted TCP or UDP header. Returns the delta for the ICMP checksum. An error may quote as
 * few as 8 bytes of that header, which include the checksum of UDP but not of TCP. */
static __always_inline u32 restore_quoted_ports_FAM(struct packet *packet, struct ports *ports, struct flow_FAM *flow,
						    u8 protocol)
{
	u32 before = ports->source + ports->destination;
	u32 change = difference(before, flow->source_port + flow->destination_port);
	u16 *check = (void *)ports + (protocol == IPPROTO_UDP ? 6 : 16);
	u16 old;

	ports->source = flow->destination_port;
	ports->destination = flow->source_port;
	if ((void *)(check + 1) > packet->end || (void *)(check + 1) - packet->network > packet->ip_bytes)
		return change;
	old = *check;
	*check = changed_transport_checksum(old, flow->l4_delta, protocol);
	return fold(change + difference(old, *check));
}

/* The quoted ports; NULL: the error quotes no TCP or UDP packet. `key` becomes that of the flow opposite to the quoted packet. */
static __always_inline struct ports *read_quoted_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct ports *ports = parse_quoted_FAM(packet, packet->transport + sizeof(struct icmp_header), key);

	if (!ports || (void *)ports + 8 > packet->end || (void *)ports + 8 - packet->network > packet->ip_bytes)
		return NULL;
	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return NULL;
	key->source_port = ports->destination;
	key->destination_port = ports->source;
	return ports;
}

/* The forward flow that a connection with this key would have now, with the first source port that it would try; in no map.
 * NULL: none can be computed. */
static __always_inline struct flow_FAM *compute_flow_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u32 zero = 0, hash, backend_id;
	struct globals *global = globals.lookup(&zero);
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);
	struct vip *vip = vips_FAM.lookup((struct vip_key_FAM *)&key->destination);
	struct service *service = vip ? find_service_FAM(key, vip) : NULL;
	struct backend *backend;

	if (!global || !connection || !service || !service->slot_count || !is_hash(service->scheduler))
		return NULL;
	if (!is_compiled_mode(service->mode))
		return NULL;
	hash = flow_hash_FAM(key, global->hash_seed);
	backend_id = select_FAM(key, service, hash, global->hash_seed);
	backend = backend_id ? backends.lookup(&backend_id) : NULL;
	if (!backend)
		return NULL;
	fill_connection_FAM(packet, key, service, backend, backend_id, connection);
	connection->hash = hash;
	if (is_one_way(connection->forward.flags))
		return &connection->forward;
	return set_first_source_FAM(key, connection) ? &connection->forward : NULL;
}

/* CONTINUE: the error is about no flow of ours. Otherwise the verdict on the translated error.
 *
 * The error of a router keeps its source, so that traceroute shows the path (RFC 5508 4.2); that of an endpoint comes from
 * the address that its packets come from. "Too big" is needed even if the flow is not known here: path MTU discovery of a
 * connection that continues here would fail. The client of such a connection is checked like that of a first packet. `key`
 * becomes that of the flow opposite to the quoted packet, if there is one.
 */
static __always_inline u32 translate_error_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct addr_FAM *source = &addresses_FAM(packet)[0], *destination = &addresses_FAM(packet)[1];
	struct icmp_header *icmp = packet->transport;
	struct ports *ports = read_quoted_FAM(packet, key);
	struct flow_FAM *flow;
	u32 change, verdict;
	bool computed;

	if (!ports || !is_same_address_FAM(destination, &key->destination)) {
		key->destination = *destination;
		key->protocol = packet->protocol;
		return CONTINUE;
	}
	flow = find_flow_FAM(key);
	computed = !flow && is_too_big_FAM(icmp);
	if (computed)
		flow = compute_flow_FAM(packet, key);
	if (!flow)
		return CONTINUE;
	packet->farm = flow->farm;
	observe_flow_FAM(flow);
	verdict = fence_FAM(packet, destination);
	if (verdict == CONTINUE && computed)
		verdict = check_client_FAM(packet, key, true);
	if (verdict != CONTINUE)
		return verdict;
	if (!is_same_address_FAM(source, &key->source) && is_martian_FAM(source))
		return COUNTER_DROP_MARTIAN;
	if (is_one_way(flow->flags)) {
		verdict = forward_whole_FAM(packet, flow);
		return is_drop(verdict) ? verdict : COUNTER_FORWARD_ICMP_ERROR;
	}
	if (hop_limit_FAM(packet) <= 1)
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow);
	if (verdict == COUNTER_PASS_TOO_BIG)
		return COUNTER_DROP_TOO_BIG; /* no ICMP error in response to an ICMP error (RFC 1122) */
	if (is_drop(verdict))
		return verdict;
	if (is_same_address_FAM(source, &key->source))
		source = &flow->source;
	change = restore_quoted_ports_FAM(packet, ports, flow, key->protocol);
	change += restore_quoted_FAM(packet->transport + sizeof(struct icmp_header), flow);
	change += rewrite_outer_FAM(packet, source, &flow->destination, verdict == CONTINUE);
	icmp->checksum = changed_checksum(icmp->checksum, fold(change));
	if (verdict != CONTINUE)
		return verdict;
	write_macs_FAM(packet, flow);
	return COUNTER_FORWARD_ICMP_ERROR;
}
