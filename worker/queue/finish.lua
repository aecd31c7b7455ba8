-- Finishes or retries jobs. Gets three arguments for each job: its id, the milliseconds after which it runs again
-- (empty if it is finished), and the reply (empty if there is none). All is one step, so that no job is in the queue
-- without its payload, and no client starts to wait between the reply and the end of the job. A channel gets its
-- replies as one message, a msgpack array.
local queue, later, accounts = KEYS[1], KEYS[2], KEYS[3]
local running, job, retry, waiting, tries_expire_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replies = {}
for i = 6, #ARGV, 3 do
    local id, retry_after_ms, reply = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if retry_after_ms ~= '' then
        if redis.call('ZSCORE', queue, id) then  -- unless another worker has finished it meanwhile
            redis.call('ZADD', queue, now + retry_after_ms, id)
            redis.call('ZADD', later, now + retry_after_ms, id)
            redis.call('INCR', retry .. id)
            redis.call('EXPIRE', retry .. id, tries_expire_s)
        end
        redis.call('DEL', running .. id)
    else
        if reply ~= '' then
            for _, channel in ipairs(redis.call('SMEMBERS', waiting .. id)) do
                replies[channel] = replies[channel] or {}
                table.insert(replies[channel], reply)
            end
        end
        redis.call('ZREM', queue, id)
        redis.call('ZREM', later, id)
        redis.call('HDEL', accounts, id)
        redis.call('DEL', running .. id, job .. id, retry .. id, waiting .. id)
    end
end
for channel, list in pairs(replies) do
    local header = string.char(0xdc, math.floor(#list / 256), #list % 256)
    redis.call('PUBLISH', channel, header .. table.concat(list))
end
