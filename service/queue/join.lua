-- Gives the account the last turn.
local function give_last_turn(turns, account)
    local last = redis.call('ZREVRANGE', turns, 0, 0, 'WITHSCORES')
    redis.call('ZADD', turns, (tonumber(last[2]) or 0) + 1, account)
end

-- Adds a job to the line of its account; an account that had no line gets the last turn. Returns whether it had none.
local function join(turns, accounts, line, id, account, due)
    redis.call('HSET', accounts, id, account)
    redis.call('ZADD', line .. account, due, id)
    if redis.call('ZSCORE', turns, account) then
        return false
    end
    give_last_turn(turns, account)
    return true
end
