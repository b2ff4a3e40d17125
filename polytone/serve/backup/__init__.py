"""A backup: the database at one moment, every version that it names and the home has, and what evaluations found.

    FOLDER/backup.json                    what is in it; it is written last, and without it there is no backup
    FOLDER/polytone-<moment>.db           the database (.pgdump of PostgreSQL)
    FOLDER/adapters/<name>/<digest12>/    as in a home; copied once, never changed
    FOLDER/evaluations/<folder>/          likewise
    FOLDER/bases/<id>/                    likewise, unless they are left out

The database comes first: versions are written before they are recorded, so whatever it names is there afterwards.
"""
