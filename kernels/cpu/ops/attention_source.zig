//! Where K and V of a token range come from: the tiles of a paged cache, or single tokens picked by
//! an index list.
const types = @import("../../abi/types.zig");
const layout = @import("../layout.zig");

pub const Pair = struct { k: [*]const u16, v: [*]const u16 };

/// One KV head of one sequence's pages.
pub const Pages = struct {
    cache: types.KvCache,
    /// (max_pages) page ids
    table: [*]const i32,
    layer: u32,
    head: u32,

    /// K and V of the tile that holds `token`.
    pub inline fn tile(self: *const Pages, token: u32) Pair {
        const page: u32 = @intCast(self.table[token / self.cache.page_size]);
        const inside = token % self.cache.page_size / layout.tile;
        const offset = @as(usize, inside) * layout.tile * self.cache.head_dim;
        return .{
            .k = layout.kvBlock(self.cache, self.layer, page, 0, self.head) + offset,
            .v = layout.kvBlock(self.cache, self.layer, page, 1, self.head) + offset,
        };
    }
};

/// Copies up to 64 picked tokens side by side into one tile of the cache's layout; missing ones are
/// zero. A token's K lies 256 bytes apart pair by pair, so this moves d / 2 cache lines for each
/// token.
pub fn gatherTile(pages: *const Pages, tokens: []const i32, k: [*]u16, v: [*]u16) void {
    const d = pages.cache.head_dim;
    const k_pairs: [*]u32 = @ptrCast(@alignCast(k));
    for (tokens, 0..) |index, t| {
        const token: u32 = @intCast(index);
        const from = pages.tile(token);
        const lane = token % layout.tile;
        const source: [*]const u32 = @ptrCast(@alignCast(from.k));
        for (0..d / 2) |pair| k_pairs[pair * layout.tile + t] = source[pair * layout.tile + lane];
        const v_from = from.v + layout.vOffset(lane, 0, d);
        const v_to = v + layout.vOffset(@intCast(t), 0, d);
        for (0..d) |i| v_to[2 * i] = v_from[2 * i];
    }
    for (tokens.len..layout.tile) |t| {
        for (0..d / 2) |pair| k_pairs[pair * layout.tile + t] = 0;
        const v_to = v + layout.vOffset(@intCast(t), 0, d);
        for (0..d) |i| v_to[2 * i] = 0;
    }
}
