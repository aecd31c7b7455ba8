-- Enqueues jobs. A job that is waiting or running under the same id is not changed; its reply goes to one more
-- channel. A new job is due now by the clock of Redis, which claims use as well. Returns how many are new.
local queue, wakeup, others_wakeup, turns, accounts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local job, channels, line, ttl_ms, max_tokens = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added, lines = 0, 0
for i = 6, #ARGV, 4 do
    local id, account, payload, reply_to = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    redis.call('SET', job .. id, payload, 'PX', ttl_ms, 'NX')
    if reply_to ~= '' then
        redis.call('SADD', channels .. id, reply_to)
        redis.call('PEXPIRE', channels .. id, ttl_ms)
    end
    if redis.call('ZADD', queue, 'NX', now, id) == 1 then
        added = added + 1
        if join(turns, accounts, line, id, account, now) then
            lines = lines + 1
        end
    end
end
for list, tokens in pairs({[wakeup] = added, [others_wakeup] = lines}) do
    for _ = 1, math.min(tokens, max_tokens) do
        redis.call('RPUSH', list, '')
    end
    redis.call('LTRIM', list, -max_tokens, -1)
end
return added
