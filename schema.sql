-- version: 4
-- Daguerre's tables as a new database gets them: all of them, in one transaction. An older database gets the same shape
-- from the numbered steps in service/schema/steps, so every change here is a step there and raises the version above.
-- A process of an older version than the applied one refuses to start.

-- The versions that were applied, and when: the one of a new database, and that of each later step. The highest counts.
-- `digest` is the SHA-256 of the file. `version` has no default, so that the first version of Daguerre, which inserts
-- none, cannot apply its tables over later ones.
create table applied_schema (
    digest     bytea not null,
    applied_at timestamptz not null default now(),
    version    integer not null
);

create table accounts (
    id           bigint generated always as identity primary key,
    name         text not null unique,
    max_bytes    bigint not null check (max_bytes >= 0),
    -- Updated by the statement that inserts or deletes images, so the quota is exact; recomputed from the
    -- images by a periodic job, so that errors are corrected.
    used_bytes   bigint not null default 0,
    num_images   bigint not null default 0,
    created_at   timestamptz not null default now(),
    changed_at   timestamptz not null default now(),
    refreshed_at timestamptz not null default '-infinity',

    -- how its pictures are delivered
    require_signature boolean not null default false,
    strip_location    boolean not null default false,

    -- The state that operators give it. The keys of a suspended account are refused and no image is inserted for it;
    -- its pictures are delivered unless delivery is stopped as well. A deletion that has begun cannot be undone.
    suspended_at      timestamptz,
    delivery_stopped  boolean not null default false,
    deletion_began_at timestamptz,
    -- An account may be over a quota that was lowered, but no image may be newer than that change.
    max_bytes_set_at  timestamptz not null default '-infinity'
) with (fillfactor = 50);  -- leaves room on each page for updates of the counters (HOT)

create table api_keys (
    id           bigint generated always as identity primary key,
    account_id   bigint not null references accounts on delete cascade,
    key_hash     bytea not null unique,  -- SHA-256; a key is 40 random characters, so no salt or key stretching
    hint         text not null,          -- the first characters, to identify the key in a list
    created_at   timestamptz not null default now(),
    last_used_at timestamptz,            -- accurate to the hour
    revoked_at   timestamptz
);
create index api_keys_of_account on api_keys (account_id);

create table images (
    id           text collate "C" primary key,
    account_id   bigint not null references accounts on delete restrict,
    state        text not null default 'pending' check (state in ('pending', 'ready', 'failed')),
    size         bigint not null check (size > 0),  -- bytes
    sha256       bytea not null,
    tags         text[] not null default '{}',
    created_at   timestamptz not null default now(),

    -- the result of the probe
    format       text,
    width        integer,
    height       integer,
    orientation  smallint,
    pages        integer,
    has_alpha    boolean,
    exif         json,   -- not jsonb, because it is only stored and returned, never searched
    mini_preview bytea,

    -- the failure
    error        text,
    error_kind   text,  -- of an unsupported picture, e.g. "12-bit JPEG"
    crashes      smallint not null default 0,  -- decoders that died while they decoded this picture
    failed_at    timestamptz,

    -- The Idempotency-Key of the request that created the image, for 24 hours. A request is a repetition if its sha256
    -- is equal, or the SHA-256 of its URL if it sends one. A failed row releases the key.
    idempotency_key text collate "C",
    idempotency_url bytea
);
create unique index images_idempotency_key on images (account_id, idempotency_key)
    where idempotency_key is not null;
create index images_keys_by_age on images (created_at) where idempotency_key is not null;

-- For the sweep. It only contains unfinished images, so it stays small.
create index images_unfinished on images (created_at) where state <> 'ready';
-- The images of an account in the order of the search. It includes the sizes, so that refreshing the counters is an
-- index-only scan.
create index images_in_order on images (account_id, created_at, id) include (size)
    where state <> 'failed';
-- The search by format and by content, in its order. It only finds ready images.
create index images_by_format on images (account_id, format, created_at, id) where state = 'ready';
create index images_by_sha256 on images (account_id, sha256, created_at, id) where state = 'ready';

-- The tags of ready images in the order of the search. An index on images.tags could find them, but not in order.
-- Triggers keep this table consistent with every change of an image. They are not called for an image without tags.
create table image_tags (
    account_id bigint not null,
    tag        text collate "C" not null,
    created_at timestamptz not null,
    image_id   text collate "C" not null,
    primary key (account_id, tag, created_at, image_id)
);

create function keep_image_tags() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' and old.state = 'ready' then
        delete from image_tags
        where account_id = old.account_id and tag = any(old.tags) and created_at = old.created_at and image_id = old.id
            and (tg_op = 'DELETE' or new.state <> 'ready' or tag <> all(new.tags));
    end if;
    if tg_op <> 'DELETE' and new.state = 'ready' then
        insert into image_tags
        select new.account_id, tag, new.created_at, new.id from unnest(new.tags) as tag
        on conflict do nothing;
    end if;
    return null;
end
$$;

create trigger images_tags_inserted after insert on images for each row
    when (new.state = 'ready' and new.tags <> '{}') execute function keep_image_tags();
create trigger images_tags_updated after update of state, tags on images for each row
    when ((old.tags, new.tags) <> ('{}', '{}') and (old.state, old.tags) <> (new.state, new.tags))
    execute function keep_image_tags();
create trigger images_tags_deleted after delete on images for each row
    when (old.state = 'ready' and old.tags <> '{}') execute function keep_image_tags();

-- The keys that sign URLs. They are not hashed, because checking a signature means computing it.
create table signing_keys (
    id         bigint generated always as identity primary key,
    account_id bigint not null references accounts on delete cascade,
    secret     text not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create index signing_keys_of_account on signing_keys (account_id, id);

-- Names for rendition parameters, which URLs may use instead of the parameters.
create table presets (
    account_id bigint not null references accounts on delete cascade,
    name       text collate "C" not null,
    parameters text not null,  -- as in a URL: width=300&height=300&fit=cover
    changed_at timestamptz not null default now(),
    primary key (account_id, name)
);

-- Files to remove: inserted by the statement that deletes the row of the image, and deleted when the file is removed.
-- So a crash in between leaves no file behind, and the sweep does not have to list the storage folders.
create table removals (
    image_id   text collate "C" primary key,
    removed_at timestamptz not null default now()
);

-- Uploads to an object store that are not finished: a row is inserted before the object is written, and deleted after
-- the image's row is committed. So an object that a crash left without an image is found without listing the bucket.
-- `token` is in the object, too, which distinguishes it from an earlier object of this name.
create table unfinished_uploads (
    image_id   text collate "C" primary key,
    token      text not null,
    started_at timestamptz not null default now()
);
create index unfinished_uploads_by_start on unfinished_uploads (started_at);

-- The renditions in their storage. `digest` identifies a rendition of an image. A rendition with a watermark is deleted
-- with either image. A row may exist longer than its image, until its file is removed.
create table renditions (
    image_id     text collate "C" not null,
    digest       text collate "C" not null,
    watermark_id text collate "C",
    size         bigint not null,  -- bytes
    used_at      timestamptz not null default now(),  -- accurate to some minutes
    primary key (image_id, digest)
);
create index renditions_by_use on renditions (used_at) include (size);
create index renditions_of_watermark on renditions (watermark_id) where watermark_id is not null;

-- The progress of the background scrub: one row. A worker holds a lease of it, by the clock of PostgreSQL.
create table scrub (
    single     boolean primary key default true check (single),
    holder     text not null,
    held_until timestamptz not null,
    started_at timestamptz,  -- of the current round
    is_over    boolean not null default true,
    after_id   text collate "C" not null default '',
    done_cost  bigint not null default 0  -- bytes, with an allowance for each file
);

-- Images whose file the scrub has found damaged. Each is logged once, until its file is intact again.
create table damaged_images (
    image_id text collate "C" primary key,
    what     text not null,
    found_at timestamptz not null default now()
);

-- The id in the file `storage-id` of the storage of the images. If the folder has another id, or none, its disk is not
-- mounted, so no file counts as missing.
create table storage (
    single boolean primary key default true check (single),
    id     text not null
);
