"""The database's revisions, run by `glue.records.schema` on a connection that it opens."""
