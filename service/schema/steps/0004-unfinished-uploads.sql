-- Uploads to an object store that are not finished; see schema.sql.
create table unfinished_uploads (
    image_id   text collate "C" primary key,
    token      text not null,
    started_at timestamptz not null default now()
);
create index unfinished_uploads_by_start on unfinished_uploads (started_at);
