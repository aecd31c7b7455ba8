-- Leases tokens of buckets, by the clock of Redis, which all processes share. A full bucket is the same as a missing
-- one, so its key expires.
local per_ms, burst, max_debt = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local leases = {}
for i, bucket in ipairs(KEYS) do
    local requested, returned = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
    local stored = redis.call('HMGET', bucket, 'tokens', 'at')
    local tokens = burst
    if stored[1] then
        local passed = math.max(0, now - tonumber(stored[2]))
        tokens = math.min(burst, tonumber(stored[1]) + passed * per_ms)
    end
    local owed = -max_debt - (tokens + returned)
    tokens = math.max(-max_debt, math.min(burst, tokens + returned))
    local leased = math.max(0, math.min(requested, math.floor(tokens + 1e-6)))
    tokens = tokens - leased
    redis.call('HSET', bucket, 'tokens', string.format('%.9f', tokens), 'at', string.format('%.3f', now))
    redis.call('PEXPIRE', bucket, string.format('%.0f', math.ceil((burst - tokens) / per_ms) + 1000))
    leases[4 * i - 3] = leased
    leases[4 * i - 2] = math.max(0, math.floor(tokens))
    leases[4 * i - 1] = math.ceil(math.max(0, 1 - tokens) / per_ms)
    leases[4 * i] = math.ceil(math.max(0, owed))
end
return leases
